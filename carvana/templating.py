"""Texts from templates, such as those in carvana/templates/."""

from pathlib import Path
from typing import Any

from markupsafe import Markup

from carvana.errors import one_line

TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, escape: bool, folder: Path = TEMPLATES, **values: Any) -> str:
    """Return the text of a template.

    Args:
        template: its file in the folder.
        escape: for HTML: every value is put on one line, as names of files can hold anything,
            and escaped. Only what is Markup already stays as it is.
        values: what its variables stand for; one that is missing is an error.
    """
    import jinja2  # delays the first mask by 0.05 s, and most runs write no page

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=escape,
        finalize=_on_one_line if escape else None,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(values)


def _on_one_line(value: Any) -> Any:
    """Return Markup as it is, anything else as text of one line."""
    return value if isinstance(value, Markup) else one_line(value)
