"""The models that come with the project, by name."""

from pathlib import Path
from typing import NamedTuple

from carvana.errors import one_line

WEIGHTS = Path(__file__).parent.parent / "weights"


class ShippedModel(NamedTuple):
    """A model that comes with the project."""

    path: Path
    purpose: str  # what it masks


SHIPPED_MODELS = {
    "anywhere": ShippedModel(WEIGHTS / "anywhere.pth.tar", "cars in any photograph"),
    "studio": ShippedModel(WEIGHTS / "carvana.pth.tar", "cars in Carvana's studio"),
    "studio-full": ShippedModel(
        WEIGHTS / "studio_full.pth.tar",
        "cars in Carvana's studio, with finer outlines in twice the time",
    ),
}


def find_model(name: str) -> str:
    """Return the file of a shipped model, or the name as it is if it is none or a file's own."""
    if name in SHIPPED_MODELS and not Path(name).exists():
        return str(SHIPPED_MODELS[name].path)
    return name


def describe_model(path: str | Path) -> str:
    """Return how output calls a model: by name and purpose, or by its file."""
    for name, model in SHIPPED_MODELS.items():
        if Path(path) == model.path:
            return f"{name}, for {model.purpose}"
    return one_line(path)
