"""How time and memory grow with the number of images, for benchmark.py.

python tools/benchmark.py --parts scaling
"""

import argparse
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from carvana.augmentation import train_transform
from carvana.device import find_device, memory_format
from carvana.pairs import find_pairs
from carvana.sampling import EpochSampler
from carvana.streams import null_stream
from carvana.system import link_or_copy, private_memory
from carvana.threads import keep_freed_memory
from dataset import CarvanaDataset, make_loader
from model import UNET
from tools.recipes import timed
from utils import check_accuracy

POLL_SECONDS = 0.02


def start_growth(growth: type, args: argparse.Namespace) -> Any:
    """Return a Growth, in a process of its own that prints nothing."""
    keep_freed_memory()
    sys.stdout = null_stream()
    return growth(args)


class Growth:
    """Decode, load and evaluate so many images, and watch the memory."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = find_device(args.device)
        self.dataset: CarvanaDataset | None = None
        self.highest = 0  # bytes
        self.ended = threading.Event()

    def measure(self, count: int) -> dict[str, float]:
        """Return seconds and megabytes for `count` pairs."""
        with tempfile.TemporaryDirectory(dir=Path(self.args.images).parent) as folder:
            row = self._measure(Path(folder), count)
            self.dataset = None  # Windows removes no file that is mapped into memory
        return row

    def _measure(self, folder: Path, count: int) -> dict[str, float]:
        self._link_pairs(folder, count)
        threading.Thread(target=self._watch_memory, daemon=True).start()
        find_s = timed(lambda: find_pairs(folder / "images", folder / "masks"))
        decode_s = timed(lambda: self._decode(folder))
        loader = make_loader(self.dataset, self.args.batch_size, -1, True, EpochSampler(count))
        model = UNET(features=[4, 8]).to(self.device, memory_format=memory_format(self.device))
        load_s = timed(lambda: [None for _ in loader])
        evaluate_s = timed(lambda: check_accuracy(loader, model, self.device))
        self.ended.set()
        return {
            "images": count,
            "find_s": find_s,
            "decode_s": decode_s,
            "load_s": load_s,
            "evaluate_s": evaluate_s,
            "private_mb": self.highest / 1e6,
        }

    def _link_pairs(self, folder: Path, count: int) -> None:
        """Fill folders with links to the pairs, under as many names as it takes."""
        pairs = find_pairs(self.args.images, self.args.masks)
        for kind, column in (("images", 0), ("masks", 1)):
            (folder / kind).mkdir()
            for i in range(count):
                path = pairs[i % len(pairs)][column].resolve()
                link_or_copy(path, folder / kind / f"{i // len(pairs):04d}_{path.name}")

    def _decode(self, folder: Path) -> None:
        self.dataset = CarvanaDataset(
            folder / "images",
            folder / "masks",
            train_transform(),
            size=self.args.size,
            cache_dir=folder / "cache",
        )

    def _watch_memory(self) -> None:
        while not self.ended.wait(POLL_SECONDS):
            self.highest = max(self.highest, private_memory())
