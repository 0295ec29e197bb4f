"""A data set of rendered cars, in the folders and files of Carvana's."""

import hashlib
import multiprocessing
import shutil
import signal
import sys
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from carvana.classes import Classes
from carvana.errors import UserError, error_summary
from carvana.files import write_image
from carvana.rendering.camera import ANGLES
from carvana.rendering.cars import PARTS, new_car
from carvana.rendering.photograph import render
from carvana.rendering.studio import new_studio

BLACK_AND_WHITE = (0, 0, 0, 255, 255, 255)  # palette of Carvana's masks


@dataclass(frozen=True)
class SetOptions:
    """Which cars a set has, and what its files are like."""

    cars: int = 28
    val_cars: int = 4  # how many of them are for validation: the last ones
    angles: int = 10  # photographs of each car, 1 to 16, spread over the full turn
    size: tuple[int, int] = (320, 480)  # (H, W) in pixels
    seed: int = 0
    parts: bool = False  # masks of PARTS instead of cars


class Job(NamedTuple):
    """A photograph and a mask to render."""

    options: SetOptions
    car: int  # number of the car in its set, from 0
    stop: int  # of the turntable, 1 to 16, as in the file's name
    image_folder: Path
    mask_folder: Path


def render_set(out: str | Path, **options: int | bool | tuple[int, int]) -> None:
    """Render a data set into out/train_images, train_masks, val_images and val_masks.

    The same options and library versions give the same files. `out` appears when all is done, or
    not at all.

    Args:
        out: a folder that does not exist yet, or is empty.
        options: fields of SetOptions, by name.

    Raises:
        UserError: disk or memory do not suffice, or `out` cannot be written to.
    """
    out = Path(out)
    staging = out.with_name(f".{out.name}-rendering")
    shutil.rmtree(staging, ignore_errors=True)  # left by a run that was killed
    try:
        jobs = _plan(SetOptions(**options), staging)
        _render_all(jobs)
        staging.rename(out)
    except (OSError, BrokenExecutor) as error:
        raise UserError(
            f"{out} could not be rendered ({error_summary(error)}); "
            "free some space or memory, or choose another folder"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _plan(options: SetOptions, folder: Path) -> list[Job]:
    """Make the set's folders below `folder`, and return what is to be rendered into them."""
    jobs = []
    for car in range(options.cars):
        is_validation = car >= options.cars - options.val_cars
        split = "val" if is_validation else "train"
        image_folder = folder / f"{split}_images"
        mask_folder = folder / f"{split}_masks"
        image_folder.mkdir(parents=True, exist_ok=True)
        mask_folder.mkdir(parents=True, exist_ok=True)
        for i in range(options.angles):
            stop = (car + round(i * ANGLES / options.angles)) % ANGLES + 1
            jobs.append(Job(options, car, stop, image_folder, mask_folder))
    return jobs


def _render_all(jobs: list[Job]) -> None:
    """Render on all cores, a process each, with a progress bar."""
    start_method = "fork" if sys.platform == "linux" else "spawn"  # spawn imports the caller anew
    pool = ProcessPoolExecutor(
        mp_context=multiprocessing.get_context(start_method),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),  # Ctrl-C is for the main process
    )
    with pool:
        results = pool.map(_render_pair, jobs, chunksize=4)
        for _ in tqdm(results, total=len(jobs), desc="rendering", unit=" images"):
            pass


def _render_pair(job: Job) -> None:
    """Write a photograph, <12 hex digits>_<01..16>.jpg, and its mask.

    The mask is <12 hex digits>_<01..16>_mask.gif in black and white, or .png in a color for each
    part.
    """
    cv2.setNumThreads(1)
    options = job.options
    rng = np.random.default_rng([options.seed, job.car])
    car = new_car(rng)
    studio = new_studio(rng)
    rng = np.random.default_rng([options.seed, job.car, job.stop])
    photograph, mask = render(car, studio, job.stop - 1, options.size, rng, options.parts)
    digits = hashlib.sha256(f"rendered {options.seed} {job.car}".encode()).hexdigest()[:12]
    name = f"{digits}_{job.stop:02d}"
    quality = studio.exposure.quality
    write_image(Image.fromarray(photograph), job.image_folder / f"{name}.jpg", quality=quality)
    mask_image = Image.fromarray(mask)
    if options.parts:
        colors = Classes(names=PARTS, ignore=255).mask_colors()
        mask_image.putpalette(colors.tobytes())
        write_image(mask_image, job.mask_folder / f"{name}_mask.png")
    else:
        mask_image.putpalette(BLACK_AND_WHITE)
        write_image(mask_image, job.mask_folder / f"{name}_mask.gif")
