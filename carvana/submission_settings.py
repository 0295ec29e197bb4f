"""What a submission's csv was written with. Needs no torch: a wrong csv is refused at once."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from carvana.images import READER_VERSION


def run_settings(
    model: str | Path,
    threshold: float | None,
    tta: bool,
    levels: int | None = None,
    windows: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what must be the same for a csv to be continued."""
    digest = hashlib.sha256(Path(model).read_bytes()).hexdigest()
    settings: dict[str, Any] = {
        "model": digest,
        "threshold": threshold,
        "tta": tta,
        "reader": READER_VERSION,
    }
    if levels:
        settings["levels"] = levels
    return settings | dict(windows or {})


def settings_of(path: str | Path) -> dict[str, Any] | None:
    """Return the settings that a csv was written with; None if they are not known."""
    try:
        return json.loads(settings_file(Path(path)).read_text())
    except (OSError, ValueError):
        return None


def settings_file(path: Path) -> Path:
    """Return the file beside a csv that holds its settings."""
    return path.with_name(f".{path.name}.run")
