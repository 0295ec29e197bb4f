"""The page of app.py: photographs are dropped on it, their cutouts looked at and downloaded."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from torch import nn

from carvana.errors import UserError
from carvana.framing import LARGEST_MARGIN, MARGIN
from carvana.shipped import SHIPPED_MODELS, describe_model
from carvana.templating import TEMPLATES
from carvana.uploads import (
    CANVAS,
    FRAMINGS,
    KINDS,
    MAX_UPLOADS,
    Choices,
    Result,
    mask_uploads,
    zip_results,
)

TITLE = "Cut out cars"
INTRO = f"""# {TITLE}
Drop up to {MAX_UPLOADS} photographs, compare before and after, and download the results. They are
computed where this page runs, go nowhere else, and are deleted after an hour.
"""
LARGEST_FILE = "200mb"
CLEANING = (600, 3600)  # seconds between cleanings, and the age at which a file is deleted
MAX_WAITING = 20  # visitors; one is served at a time
FONTS = ("system-ui", "sans-serif")  # a visitor's own: nothing is loaded from elsewhere
FRAMED_KINDS = ("cutout", "background")


class Page:
    """The page's parts and what happens between them. It keeps nothing of a visitor."""

    def __init__(
        self, models: dict[str, str], load_model: Callable[[str], nn.Module], loaded: str
    ) -> None:
        """Lay out the page.

        Args:
            models: files by the names that visitors choose from.
            load_model: returns the network in a file, every time the same one.
            loaded: name of the model that is chosen at first.
        """
        self.models = models
        self.load_model = load_model
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=CLEANING) as self.blocks:
            gr.Markdown(INTRO)
            with gr.Row():
                with gr.Column(scale=2, min_width=320):
                    self.photographs = self._add_drop_zone()
                    choices = [*self._add_choices(), *self._add_model_choices(loaded)]
                with gr.Column(scale=3, min_width=320):
                    outputs = self._add_results()
            self._connect([self.photographs, *choices], outputs)

    def _add_drop_zone(self) -> gr.Files:
        photographs = gr.Files(label="Photographs", height=220)
        with gr.Accordion("Take one by webcam", open=False):
            webcam = gr.Image(
                sources=["webcam"],
                type="filepath",
                image_mode=None,  # handed on as it is
                webcam_options=gr.WebcamOptions(mirror=False),
                show_label=False,
            )
        webcam.input(
            add_photograph, [photographs, webcam], [photographs, webcam], api_visibility="private"
        )
        return photographs

    def _add_choices(self) -> list[gr.components.Component]:
        kind = gr.Radio(KINDS, value=KINDS[0], label="Result")
        with gr.Row(visible=False) as backgrounds:
            color = gr.ColorPicker("#ffffff", label="Background color", min_width=140)
            background = gr.File(label="or a photograph", height=150, min_width=160)
        with gr.Group() as frame:
            shadow = gr.Checkbox(label="Shadow on the ground")
            framing = gr.Radio(FRAMINGS, value=FRAMINGS[0], label="Framing")
            with gr.Row(visible=False) as margins:
                canvas = gr.Textbox(CANVAS, label="Canvas", info="width x height", min_width=120)
                margin = gr.Slider(0, LARGEST_MARGIN, MARGIN, step=0.01, label="Margin")
        kind.change(show_choices, [kind], [backgrounds, frame], api_visibility="private")
        framing.change(show_margins, [framing], [margins, canvas], api_visibility="private")
        return [kind, color, background, shadow, framing, canvas, margin]

    def _add_model_choices(self, loaded: str) -> list[gr.components.Component]:
        with gr.Accordion("Model and threshold", open=False):
            labels = [self._model_label(name) for name in self.models]
            names = list(zip(labels, self.models, strict=True))
            model = gr.Dropdown(names, value=loaded, label="Model")
            threshold = gr.Slider(
                0, 0.99, 0, step=0.01, label="Threshold", info="of being car; 0: the model's own"
            )
        return [threshold, model]

    def _model_label(self, name: str) -> str:
        """Return how visitors see a model; of the server's files that is not the path."""
        return describe_model(self.models[name]) if name in SHIPPED_MODELS else name

    def _add_results(self) -> list[gr.components.Component]:
        comparison = gr.ImageSlider(
            label="Before and after",
            interactive=False,
            buttons=["fullscreen"],  # a download would be that of the preview
            max_height=620,
            elem_classes="pictures",
        )
        gallery = gr.Gallery(
            label="Choose one to compare",
            columns=4,
            object_fit="contain",
            allow_preview=False,
            buttons=[],
            visible=False,
            elem_classes="pictures",
        )
        report = gr.Textbox(label="What became of each", interactive=False, max_lines=12)
        download = gr.DownloadButton("Download", interactive=False, variant="primary")
        files = gr.Files(label="Results", visible=False, interactive=False)
        pairs = gr.State([])  # of previews, of this visit
        gallery.select(choose_pair, [pairs], [comparison], api_visibility="private")
        return [files, download, report, gallery, comparison, pairs]

    def _connect(self, inputs: list[Any], outputs: list[Any]) -> None:
        """Mask at once when photographs or choices change."""
        triggers = [self.photographs.change]
        for choice in inputs[1:]:
            if isinstance(choice, gr.Textbox):  # when all of it is typed
                triggers += [choice.submit, choice.blur]
            elif isinstance(choice, gr.Slider):
                triggers.append(choice.release)
            else:
                triggers.append(choice.change)
        masking = gr.on(
            triggers,
            self.mask,
            inputs,
            outputs,
            api_name="mask",
            trigger_mode="always_last",
        )
        files, download, _, gallery, _, pairs = outputs
        masking.then(show_results, pairs, [files, download, gallery], api_visibility="private")

    def mask(  # noqa: PLR0913 (the API's names)
        self,
        photographs: list[str] | None,
        kind: str = KINDS[0],
        color: str = "#ffffff",
        background: str | None = None,
        shadow: bool = False,
        framing: str = FRAMINGS[0],
        canvas: str = CANVAS,
        margin: float = MARGIN,
        threshold: float = 0.0,
        model: str = "",
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (how Gradio hands it over)
    ) -> tuple:
        """Mask photographs as inference.py does.

        Args:
            photographs: files, such as [handle_file("car.jpg")].
            kind: cutout, background, overlay or mask.
            color: of the background, such as #ffffff.
            background: a photograph to place the cars on instead.
            shadow: keep or draw the cars' shadows; of cutouts and backgrounds, as all that follows.
            framing: as photographed, trim or fit.
            canvas: width and height for fit, such as 1200x800.
            margin: share of width and height left free at each side, for trim and fit.
            threshold: probability above which a pixel is car; 0 for the model's own.
            model: its name in the page.

        Returns:
            The files, all of them in one, a line for each photograph, and what the page shows.
        """
        if not photographs:
            return self._show([], "", None)
        choices = Choices(kind, color, background, shadow, framing, canvas, margin, threshold)
        with shown_errors(), tempfile.TemporaryDirectory() as folder:
            network = self.load_model(self.models[model])
            results, failures = mask_uploads(photographs, choices, network, folder, progress)
            report = "\n".join([*(result.line for result in results), *failures])
            everything = results[0].file if results else None
            if len(results) > 1:
                everything = Path(folder, f"{kind}s.zip")
                zip_results(results, everything)
            return self._show(results, report, everything)

    def _keep(self, path: Path) -> str:
        """Return a copy of a file from where Gradio hands it out, and deletes it."""
        return str(self.photographs.move_resource_to_block_cache(path))

    def _show(self, results: list[Result], report: str, everything: Path | None) -> tuple:
        """Return the values of the outputs."""
        files = [self._keep(result.file) for result in results]
        pairs = [(self._keep(result.before), self._keep(result.after)) for result in results]
        names = [result.file.name for result in results]
        gallery = [(after, name) for (_, after), name in zip(pairs, names, strict=True)]
        download = everything and self._keep(everything)
        return files, download, report, gallery, pairs[0] if pairs else None, pairs


def add_photograph(photographs: list[str] | None, photograph: str | None) -> tuple:
    """Return the photographs with that of the webcam, which is free for the next."""
    if photograph is None:
        return gr.skip(), gr.skip()
    return [*(photographs or []), photograph], None


def choose_pair(pairs: list[tuple[str, str]], chosen: gr.SelectData) -> tuple[str, str]:
    """Return the previews to compare."""
    return pairs[chosen.index]


def show_results(pairs: list[tuple[str, str]]) -> tuple:
    """Show the list of files and what to compare if there are several, and a fitting button."""
    several = gr.update(visible=len(pairs) > 1)
    label = f"Download all {len(pairs)}" if len(pairs) > 1 else "Download"
    return several, gr.update(label=label, interactive=bool(pairs)), several


def show_choices(kind: str) -> tuple:
    """Show the choices that matter for a kind of result: backgrounds; shadow and framing."""
    return gr.update(visible=kind == "background"), gr.update(visible=kind in FRAMED_KINDS)


def show_margins(framing: str) -> tuple:
    """Show margins where there are any, and the canvas where there is one."""
    return gr.update(visible=framing != FRAMINGS[0]), gr.update(visible=framing == "fit")


@contextlib.contextmanager
def shown_errors() -> Iterator[None]:
    """Turn a UserError into a message on the page."""
    try:
        yield
    except UserError as error:
        raise gr.Error(str(error), duration=30, print_exception=False) from error


def open_page(page: Page, host: str, port: int) -> None:
    """Serve a page until Ctrl-C."""
    page.blocks.queue(max_size=MAX_WAITING).launch(
        server_name=host,
        server_port=port,
        share=False,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=["api"],
        max_file_size=LARGEST_FILE,
        theme=gr.themes.Default(font=FONTS, font_mono=("monospace",)),
        css_paths=TEMPLATES / "page.css",
        quiet=True,
        prevent_thread_lock=True,
    )
    print(f"now open http://{host}:{port} in a browser; Ctrl-C ends")
    page.blocks.block_thread()
