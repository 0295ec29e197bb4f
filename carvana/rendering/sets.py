"""A data set of rendered cars or street scenes, in the folders and files of Carvana's."""

import glob
import hashlib
import multiprocessing
import os
import shutil
import signal
import threading
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from carvana import system
from carvana.classes import Classes
from carvana.errors import UserError, error_summary
from carvana.files import is_abandoned, random_token, write_image
from carvana.rendering.camera import ANGLES
from carvana.rendering.cars import PARTS, new_car
from carvana.rendering.photograph import render
from carvana.rendering.scenery import SCENE_CLASSES
from carvana.rendering.scenes import render_scene
from carvana.rendering.street import new_street
from carvana.rendering.studio import new_studio

BLACK_AND_WHITE = (0, 0, 0, 255, 255, 255)  # palette of Carvana's masks
Kind = Literal["cars", "parts", "scenes"]
CLASSES: dict[Kind, tuple[str, ...]] = {  # that masks tell apart
    "cars": ("car",),
    "parts": PARTS,
    "scenes": SCENE_CLASSES,
}


@dataclass(frozen=True)
class SetOptions:
    """Which cars or scenes a set has, and what its files are like."""

    cars: int = 28  # or scenes
    val_cars: int = 4  # how many of them are for validation: the last ones
    angles: int = 10  # photographs of each car, 1 to 16, spread over the full turn; 1 of a scene
    size: tuple[int, int] = (320, 480)  # (H, W) in pixels
    seed: int = 0
    kind: Kind = "cars"  # cars or their parts in a studio, or scenes in a street


class Job(NamedTuple):
    """A photograph and a mask to render."""

    options: SetOptions
    car: int  # number of the car or scene in its set, from 0
    stop: int  # of the turntable, 1 to 16, as in the file's name
    photograph: Path
    mask: Path


def render_set(out: str | Path, **options: Any) -> None:
    """Render a data set into out/train_images, train_masks, val_images and val_masks.

    The same options and library versions give the same files. `out` appears when all is done, or
    not at all. Where several processes render the same set, the first one's appears.

    Args:
        out: a folder that does not exist yet, or is empty.
        options: fields of SetOptions, by name.

    Raises:
        UserError: disk or memory do not suffice, or `out` cannot be written to.
    """
    out = Path(out)
    remove_leftovers(out)
    staging = out.with_name(f".{out.name}-rendering-{random_token()}")
    jobs = _plan(SetOptions(**options), staging)
    try:
        _render_all(jobs)
        system.move_folder(staging, out)
    except (OSError, BrokenExecutor) as error:
        if _is_complete(out, staging, jobs):  # another process was faster
            return
        raise UserError(
            f"{out} could not be rendered ({error_summary(error)}); "
            "free some space or memory, or choose another folder"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def remove_leftovers(out: Path) -> None:
    """Remove what processes that were killed while they rendered `out` left beside it."""
    for leftover in out.parent.glob(f".{glob.escape(out.name)}-rendering*"):
        if is_abandoned(leftover):
            shutil.rmtree(leftover, ignore_errors=True)


def _plan(options: SetOptions, folder: Path) -> list[Job]:
    """Return what is to be rendered into the set's folders below `folder`.

    A photograph is <12 hex digits>_<01..16>.jpg. Its mask is <12 hex digits>_<01..16>_mask.gif in
    black and white, or .png in a color for each class.
    """
    ending = ".gif" if options.kind == "cars" else ".png"
    jobs = []
    for car in range(options.cars):
        is_validation = car >= options.cars - options.val_cars
        split = "val" if is_validation else "train"
        digits = hashlib.sha256(f"rendered {options.seed} {car}".encode()).hexdigest()[:12]
        for i in range(options.angles):
            stop = (car + round(i * ANGLES / options.angles)) % ANGLES + 1
            name = f"{digits}_{stop:02d}"
            photograph = folder / f"{split}_images" / f"{name}.jpg"
            mask = folder / f"{split}_masks" / f"{name}_mask{ending}"
            jobs.append(Job(options, car, stop, photograph, mask))
    return jobs


def _is_complete(out: Path, staging: Path, jobs: list[Job]) -> bool:
    """Return whether `out` holds every file that the jobs write below `staging`."""
    paths = [path for job in jobs for path in (job.photograph, job.mask)]
    return all((out / path.relative_to(staging)).is_file() for path in paths)


def _render_all(jobs: list[Job]) -> None:
    """Render on all cores, a process each, with a progress bar."""
    for folder in {path.parent for job in jobs for path in (job.photograph, job.mask)}:
        folder.mkdir(parents=True)
    context = multiprocessing.get_context(system.start_method())
    with ProcessPoolExecutor(mp_context=context, initializer=_start_worker) as pool:
        with system.without_main_module():  # train.py, which imports torch
            results = pool.map(_render_pair, jobs, chunksize=4)
        for _ in tqdm(results, total=len(jobs), desc="rendering", unit=" images"):
            pass


def _start_worker() -> None:
    """Prepare a process of the pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the one that started it has been killed: nobody else would."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _render_pair(job: Job) -> None:
    """Write a photograph and its mask."""
    cv2.setNumThreads(1)
    render_pair = _render_scene if job.options.kind == "scenes" else _render_car
    photograph, mask, quality = render_pair(job)
    write_image(Image.fromarray(photograph), job.photograph, quality=quality)
    mask_image = Image.fromarray(mask)
    mask_image.putpalette(_palette(job.options.kind))
    write_image(mask_image, job.mask)


def _render_car(job: Job) -> tuple[np.ndarray, np.ndarray, int]:
    """Return a photograph of a car in a studio, its mask, and the quality of the JPEG file."""
    options = job.options
    rng = np.random.default_rng([options.seed, job.car])
    car = new_car(rng)
    studio = new_studio(rng)
    rng = np.random.default_rng([options.seed, job.car, job.stop])
    is_parts = options.kind == "parts"
    photograph, mask = render(car, studio, job.stop - 1, options.size, rng, is_parts)
    return photograph, mask, studio.exposure.quality


def _render_scene(job: Job) -> tuple[np.ndarray, np.ndarray, int]:
    """Return a photograph of a street, its mask, and the quality of the JPEG file."""
    rng = np.random.default_rng([job.options.seed, job.car])
    street = new_street(rng)
    photograph, mask = render_scene(street, job.options.size, rng)
    return photograph, mask, street.exposure.quality


def _palette(kind: Kind) -> bytes:
    """Return the colors in which masks of a kind of set are stored."""
    if kind == "cars":
        return bytes(BLACK_AND_WHITE)
    return Classes(names=CLASSES[kind], ignore=255).mask_colors().tobytes()
