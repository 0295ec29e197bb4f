"""Open a page to drop photographs on, and download their cutouts, masks or overlays.

python app.py                                    then open http://127.0.0.1:7860
python app.py --model best_checkpoint.pth.tar    with a model of your own to choose, too
python app.py --host 0.0.0.0 --port 8000         for the whole network: there is no password
"""

import argparse
import functools
import importlib.util
import os
import signal
import socket
import tempfile
from pathlib import Path

import config
from carvana import options
from carvana.errors import UserError, error_summary, user_errors
from carvana.opening import set_max_megapixels
from carvana.shipped import SHIPPED_MODELS
from carvana.threads import keep_freed_memory

LOADED_MODELS = 3  # that are kept in memory
LAST_PORT = 65535


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all options."""
    parser = options.make_parser(
        __doc__, usage="%(prog)s [--model FILE] [--host ADDRESS] [--port N] [option ...]"
    )
    group = parser.add_argument_group("how masks are predicted")
    options.add_model_option(
        group, f"checkpoint, such as {config.BEST_CHECKPOINT_FILE}, or exported model"
    )
    group = parser.add_argument_group("who reaches the page")
    group.add_argument(
        "--host",
        metavar="ADDRESS",
        default="127.0.0.1",
        help="where to listen; default: %(default)s, for this computer alone",
    )
    group.add_argument(
        "--port", type=int, default=7860, metavar="N", help="port to listen on; default %(default)s"
    )
    group = parser.add_argument_group("where it runs")
    options.add_device_option(group)
    options.add_constants(group, options.read_constants(config), ["MAX_MEGAPIXELS"])
    return parser


def parse_args() -> argparse.Namespace:
    """Return the options, checked."""
    args = make_parser().parse_args()
    set_max_megapixels(options.resolve(config, args).MAX_MEGAPIXELS)
    if not 1 <= args.port <= LAST_PORT:
        raise UserError(f"--port: expected 1..{LAST_PORT}, found {args.port}")
    check_address(args.host, args.port)
    options.check_model_file(args.model)
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs Gradio; pip install -r requirements-app.txt")
    return args


def check_address(host: str, port: int) -> None:
    """Raise UserError if nothing can listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port}: cannot listen there ({error_summary(error)}); choose "
            "another port, or a host that is this machine's, such as 127.0.0.1"
        ) from error


def list_models(chosen: str) -> tuple[dict[str, str], str]:
    """Return the models to choose from, {name: file}, and the name of the first choice."""
    models = {name: str(model.path) for name, model in SHIPPED_MODELS.items()}
    for name, path in models.items():
        if path == chosen:
            return models, name
    name = Path(chosen).name
    return {name: chosen, **models}, name


def main() -> None:
    """Serve the page."""
    args = parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leaves no files behind, as Ctrl-C
    models, loaded = list_models(args.model)
    with tempfile.TemporaryDirectory(prefix="carvana_page_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # uploads and results; Gradio reads it at its import
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        # Gradio and torch take seconds to import; wrong options have been reported by now.
        import utils
        from carvana.page import Page, open_page

        load_model = functools.partial(utils.load_model, device=args.device)
        load_model = functools.lru_cache(LOADED_MODELS)(load_model)
        load_model(args.model)  # what is wrong with it is said now
        open_page(Page(models, load_model, loaded), args.host, args.port)


if __name__ == "__main__":
    keep_freed_memory()
    with user_errors():
        main()
