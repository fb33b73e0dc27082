"""``inspect``: what the data is, before anything is trained on it."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import LightningModule

from mnist_lightning.cli.bad_input import in_one_line, parse, try_int_before_float
from mnist_lightning.cli.checks import check_folder_name
from mnist_lightning.cli.interrupt import raise_on_ctrl_c
from mnist_lightning.cli.network import new_parser
from mnist_lightning.data import MNISTDataModule
from mnist_lightning.data.transforms import TRANSFORMS
from mnist_lightning.results.inspection import describe, draw
from mnist_lightning.runs.progress import say, unbroken


def inspect(args: Sequence[str], model_class: type[LightningModule], data_class: type[MNISTDataModule]) -> None:
    """Print the data's shapes and counts, and write pictures of it. No model is needed."""
    parser = new_parser("inspect")
    # The pictures show the images as they lie in the files, without a transform.
    parser.add_class_arguments(data_class, "data", fail_untyped=False, skip=set(TRANSFORMS))
    try_int_before_float(parser)
    parser.add_argument("--out", type=str, default="inspection", help="The folder for the pictures.")
    options = parse(parser, args[1:])
    with in_one_line():
        data: MNISTDataModule = parser.instantiate_classes(options).data
    check_folder_name("data.data_dir", options.data.data_dir)
    check_folder_name("out", options.out)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    print(describe(data), flush=True)
    raise_on_ctrl_c()
    for path in draw(data, Path(options.out)):
        say("Written", unbroken(path))
