"""The commands, and what ``--help`` says of them."""

from mnist_lightning import __version__

COMMANDS = {
    "inspect": "look at the data, in the terminal and as pictures, before any training",
    "fit": "train the network, then test it on the test images",
    "validate": "evaluate a run on the training images it held out",
    "test": "evaluate a run on the test images",
    "predict": "write a run's predictions for the test images, or read the digits in pictures",
    "draw": "write a page to draw on, which a run's network reads, and open it",
    "export": "write a run's network as ONNX or .pt2, for other programs",
}

_LINES = "\n".join(f"  {name:<15}  {does}" for name, does in COMMANDS.items())

HELP = f"""\
usage: python -m mnist_lightning [-h] [--version] [--config CONFIG] COMMAND ...

Chollet's "A first look at a neural network" on PyTorch Lightning, offline.

commands:
{_LINES}

options:
  -h, --help       show this message
  --version        show the version, {__version__}
  --config CONFIG  a YAML file with options of one command

'python -m mnist_lightning COMMAND --help' lists the options of a command."""
