"""How many of a loader's workers fit into shared memory, where they hand over batches."""

import os
import shutil

from carvana.distributed import FIRST
from carvana.errors import plural, warn
from carvana.system import SHARED_MEMORY

SHARE = 0.8  # of what is free: others use it too


def fit_workers(workers: int, bytes_per_worker: int) -> int:
    """Return as many of a loader's workers as shared memory has room for, with a warning if fewer.

    Workers on Linux hand over batches in SHARED_MEMORY, of which a container has 64 MB by default.
    Training and validation can both have batches there, in each process of a machine.
    """
    if not workers or not bytes_per_worker or not os.path.isdir(SHARED_MEMORY):
        return workers
    free = shutil.disk_usage(SHARED_MEMORY).free
    each = 2 * bytes_per_worker * int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    fitting = min(workers, int(free * SHARE // each))
    if fitting < workers and FIRST:
        warn(
            f"warning: {plural(workers, 'worker')} can need {workers * each / 1e6:,.0f} MB of "
            f"{SHARED_MEMORY}, which has {free / 1e6:,.0f} MB free; reading with {fitting} instead "
            "of NUM_WORKERS. docker run --shm-size 2g makes it larger"
        )
    return fitting
