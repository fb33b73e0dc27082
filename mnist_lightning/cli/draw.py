"""``draw``: a page to draw on, which a run's network reads."""

import os
import sys
import webbrowser
from collections.abc import Sequence

from lightning.pytorch import LightningModule

from mnist_lightning.cli.network import load_network, new_parser
from mnist_lightning.data import MNISTDataModule
from mnist_lightning.errors import InputError
from mnist_lightning.files import write_atomically
from mnist_lightning.results.draw_page import draw_page
from mnist_lightning.results.report import Report
from mnist_lightning.runs.progress import say, unbroken


def draw(args: Sequence[str], model_class: type[LightningModule], data_class: type[MNISTDataModule]) -> None:
    """Write ``draw.html`` into the run's folder, and open it where there is a graphical display."""
    parser = new_parser("draw")
    parser.add_argument("--no_open", action="store_true", help="Only write the page.")
    options, trained = load_network("draw", parser, args[1:], model_class, data_class)
    if trained.images.shape[1:] != (1, 28, 28):
        raise InputError(
            f"a page to draw on makes images of (1, 28, 28), this network's are {tuple(trained.images.shape[1:])}"
        )
    pixels = (255 * trained.images).round().byte()
    report = Report.from_predictions(trained.probabilities, trained.targets, pixels, classes=trained.classes)
    page = draw_page(trained.network.network, report, trained.images, trained.probabilities)
    path = trained.folder / "draw.html"
    write_atomically(path, page.encode())
    say("Written", f"{unbroken(path)} ({len(page) / 1e6:.2f} MB): open it in a browser, here or on a phone")
    # Without a screen with windows, webbrowser would start a text browser in the terminal.
    has_display = sys.platform in ("darwin", "win32") or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    if has_display and not options.no_open:
        webbrowser.open(path.resolve().as_uri())
