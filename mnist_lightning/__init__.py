"""Chollet's first look at a neural network, as a PyTorch Lightning package.

    >>> from mnist_lightning import MNISTClassifier, MNISTDataModule

Importing the package starts nothing and imports nothing heavy: torch and Lightning
come in with the first use of one of the names below.
"""

TYPE_CHECKING = False  # not from typing, whose import takes 5 ms in which Ctrl-C would be a traceback
if TYPE_CHECKING:
    from typing import Any

    from mnist_lightning.data import MNISTDataModule
    from mnist_lightning.model import MNISTClassifier

__version__ = "0.1.0"
__all__ = ["MNISTClassifier", "MNISTDataModule", "__version__"]

_MODULES = {"MNISTClassifier": "model", "MNISTDataModule": "data"}


def __getattr__(name: str) -> "Any":
    # Lazily (PEP 562), so that `--version` and a mistyped command answer before torch is imported.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
