"""The private names of others that the package uses: a release that takes one away is told by name."""

import ast
import atexit
import inspect
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.core import saving
from torch.autograd import forward_ad

import mnist_lightning


def trainer() -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)


def keys_of(module: Any) -> SimpleNamespace:
    """The private names that stand in the strings of a module."""
    return SimpleNamespace(**dict.fromkeys(re.findall(r'"(_\w+)"', inspect.getsource(module))))


# The name, and what makes the thing that has it.
PRIVATE: dict[str, Callable[[], Any]] = {
    # Python
    "_ncallbacks": lambda: atexit,
    # torch
    "_C": lambda: torch,
    "_are_functorch_transforms_active": lambda: torch._C,
    "_current_level": lambda: forward_ad,
    "_init_group": lambda: torch.optim.RMSprop,
    "_is_avx512_bf16_supported": lambda: torch.cpu,
    "_len_torch_dispatch_stack": lambda: torch._C,
    "_linear_pointwise": lambda: torch.ops.mkldnn,
    # Lightning, and jsonargparse below it
    "_actions": LightningArgumentParser,
    "_batches_that_stepped": lambda: trainer().fit_loop.epoch_loop,
    "_enabled": TQDMProgressBar,
    "_get": lambda: LightningCLI,
    "_instantiator": lambda: keys_of(saving),
    "_parse_ckpt_path": lambda: LightningCLI,
    "_parser": lambda: LightningCLI,
    "_results": lambda: Trainer,
    "_typehint": lambda: LightningArgumentParser().add_argument("--size", type=int | float),
}


@pytest.mark.parametrize("name", PRIVATE)
def test_a_private_name_is_still_there(name: str) -> None:
    releases = [f"{package} {version(package)}" for package in ("torch", "lightning", "jsonargparse")]
    assert hasattr(PRIVATE[name](), name), f"{', '.join(releases)}: one of them has no {name} any more"


def is_private(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier() and name.startswith("_") and not name.startswith("__")


def test_the_list_of_private_names_is_complete() -> None:
    """Whatever the package reaches for that it has not defined itself, as an attribute or by its name in a string."""
    files = Path(mnist_lightning.__file__).parent.rglob("*.py")
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text("utf-8")))]
    own = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    in_f_strings = {part for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    strings = {node.value for node in nodes if isinstance(node, ast.Constant) and node not in in_f_strings}
    used = set(filter(is_private, strings))
    for node in nodes:
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if isinstance(node.value, ast.Name) and node.value.id == "self" and isinstance(node.ctx, ast.Store):
                own.add(node.attr)
            else:
                used.add(node.attr)
    # Python documents two. Methods of LightningCLI that the package overrides are defined in it, too.
    assert used - own - {"_exit", "_replace"} == PRIVATE.keys() - {"_parse_ckpt_path"}
