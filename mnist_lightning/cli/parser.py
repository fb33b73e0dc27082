"""The parser: LightningCLI with this package's defaults, and with a run's own options as defaults."""

import numbers
import os
import random
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import register_type
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, instantiate_class
from lightning.pytorch.utilities import rank_zero_only

from mnist_lightning.cli import checks, pictures, speed, threads
from mnist_lightning.cli.bad_input import STRICT, in_one_line, parse, try_int_before_float
from mnist_lightning.cli.start import DEFAULT_SEED, check_same, checkpoint_defaults, choose_seed, find_start
from mnist_lightning.cli.trainer import trainer_options
from mnist_lightning.data import MNISTDataModule
from mnist_lightning.errors import InputError
from mnist_lightning.files import forget_training, write_atomically
from mnist_lightning.model.linear import prefer_onednn, teams_may_shrink
from mnist_lightning.runs.resume import check_class, check_resumable, check_states, check_weights

PROGRAM = "python -m mnist_lightning"
DEFAULT_EPOCHS = 5  # the tutorial's
# What the model takes from the data, if its class has the parameter. A list, as YAML has no tuples.
LINKS: dict[str, Callable[[Any], Any]] = {"image_shape": list, "num_classes": int}

# torchvision annotates the degrees of a rotation with it. jsonargparse does not know it by itself.
register_type(numbers.Number, serializer=float, deserializer=float, type_check=isinstance)
# jsonargparse alone makes a path called "None" of null and ~.
register_type(os.PathLike, os.fspath, Path, type_check=isinstance, fail_already_registered=False)


def option_names(parser: ArgumentParser) -> set[str]:
    """The names of all options of a parser, such as ``"data.seed"``."""
    return {action.dest for action in parser._actions}  # noqa: SLF001  # no public list of them


def link_shapes(parser: ArgumentParser) -> None:
    """Have the model take the shape of the images and the number of classes from the data, where its class has them."""
    there = option_names(parser)
    for name, kind in LINKS.items():
        if f"model.{name}" in there:
            parser.link_arguments(f"data.{name}", f"model.{name}", kind, apply_on="instantiate")


class MNISTCLI(LightningCLI):
    """Parses one command line, and makes the model, the data and the Trainer. It does not run the command."""

    def __init__(
        self,
        args: list[str],
        model_class: type[LightningModule],
        data_class: type[MNISTDataModule],
        afterwards: ExitStack,
    ) -> None:
        own = all(made.__module__.startswith("mnist_lightning.") for made in (model_class, data_class))
        # How the user calls the command, for the commands that a message names.
        self.program = PROGRAM if own else _program()
        self.afterwards = afterwards  # what is put back after the command
        args, self.pictures = pictures.split(args)  # for `predict`
        self._typed = args[0]  # the command, or `--config` before it
        strict = {name: dict(STRICT) for name in self.subcommands()}
        super().__init__(
            model_class,
            data_class,
            save_config_callback=None,  # RunFolder saves it
            trainer_defaults={"max_epochs": DEFAULT_EPOCHS, "enable_model_summary": False},
            seed_everything_default=DEFAULT_SEED,
            parser_kwargs={"prog": self.program or PROGRAM, **STRICT, **strict},
            args=args,
            # Otherwise a checkpoint names the function that makes its model.
            load_from_checkpoint_support=False,
        )

    # ---------------------------------------------------------------- parsing

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # a static method there
        """Only the command that was typed: each has a parser of its own, which takes 0.1 s to make."""
        # Without `weights_only`: a checkpoint is data, never code.
        commands = {name: skip | {"weights_only"} for name, skip in LightningCLI.subcommands().items()}
        return {self._typed: commands[self._typed]} if self._typed in commands else commands

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options that are neither the Trainer's nor the model's nor the data's, when these are there."""
        parser.add_argument(
            "--matmul_precision",
            type=Literal["highest", "high", "medium"],
            default="highest",
            help="How float32 matrices are multiplied, see torch.set_float32_matmul_precision.",
        )
        parser.add_argument(
            "--threads",
            type=int | None,
            help="How many threads a process takes on the CPU. By default, one for each core that it may use.",
        )
        if self._typed == "predict":
            parser.epilog = pictures.HELP
        try_int_before_float(parser)
        link_shapes(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, with the options of the run or the checkpoint that the command starts from as defaults."""
        if {"-h", "--help"} & set(args):
            parser.parse_args(args)
        with in_one_line():
            self._parse(parser, args)

    def _parse(self, parser: LightningArgumentParser, args: list[str]) -> None:
        given = self._given(args)
        self.command = command = str(given.subcommand)
        options: Namespace = given[command]
        for group in ("trainer", "model", "data"):
            if not isinstance(options.get(group, options), Namespace):
                raise InputError(f"{group} must have options of its own, as --{group}.NAME, got {options[group]!r}")
        self.start = find_start(command, options)
        self.ckpt_path = None if self.start.path is None else str(self.start.path)
        classes: dict[str, Any] = {"model": self.model_class, "data": self.datamodule_class}
        wanted, trained = options.get("seed_everything"), None
        known = option_names(self._parser(command))
        if command == "fit" and self.start.config is not None:
            # Later arguments win: the user's flags over the run's configuration.
            run = ["--config", str(self.start.config)]
            run += ["--data.download=false"] * ("data.download" in known)  # no run asks for the network
            at = args.index(command) + 1
            args = [*args[:at], *run, *args[at:]]
            own = self._given([*args[: at + 2]])[command]
            check_same(options, own, ["seed_everything"], "run")
            wanted, trained = own.get("seed_everything", wanted), own.get("threads")
        if self.start.checkpoint is not None:
            known -= {f"model.{name}" for name in LINKS}
            defaults = checkpoint_defaults(self.start, command, options, classes, known)
            transform = self.start.transform() if command != "fit" and "data.transform" in known else None
            if transform is not None:
                defaults["data.transform"] = transform
            self._parser(command).set_defaults(defaults)
            trained = self.start.checkpoint.get("num_threads", trained)
        seed = choose_seed(wanted, self.start.checkpoint)
        if seed is not None and self.start.checkpoint is None and "data.seed" in known:  # a user's class may have none
            self._parser(command).set_defaults({"data.seed": seed})
        self.config = parse(parser, args)
        self.options: Namespace = self.config[command]
        self.root: str | None = self.options.trainer.default_root_dir
        self.options.seed_everything = False if seed is None else seed
        self.threads = threads.choose(options.get("threads"), trained)
        if command == "fit":
            checks.check_optimizer_flags(classes["model"], options, args)
            if self.start.checkpoint is not None and self.start.path is not None:
                check_resumable(self.start.checkpoint, self.options, self.start.path)
        checks.check_folder_name("trainer.default_root_dir", self.options.trainer.default_root_dir)
        checks.check_folder_name("data.data_dir", self.options.data.get("data_dir"))
        checks.check_trainer(self.options.trainer)

    def _given(self, args: Sequence[str]) -> Namespace:
        """What the arguments say, by flags and config files, without any defaults."""
        return parse(self.parser, [arg for arg in args if not arg.startswith("--print_config")], defaults=False)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: LightningCLI would let the checkpoint override the user's flags."""

    # ---------------------------------------------------------- instantiation

    def _set_seed(self) -> None:
        """Seed the random generators, if the user wants that. After the command, they go on as if nothing was."""
        if self.options.seed_everything is not False:
            # Lightning's isolate_rng does not do it after an exception.
            self.afterwards.callback(torch.set_rng_state, torch.get_rng_state())
            self.afterwards.callback(random.setstate, random.getstate())
            self.afterwards.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002  # the global one
        super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Set how torch multiplies, and with how many threads."""
        torch.set_float32_matmul_precision(self.options.matmul_precision)
        self._take(self.threads)
        if teams_may_shrink():  # with more than one, torch's products of bfloat16 would be wrong
            self._take(threads.Threads(1, "OpenMP may give fewer"))

    def _take(self, chosen: threads.Threads) -> None:
        self.threads = chosen
        if chosen.number is not None:
            torch.set_num_threads(chosen.number)
            os.environ["OMP_NUM_THREADS"] = str(chosen.number)  # otherwise Lightning divides the cores

    def instantiate_classes(self) -> None:
        """Make model, data and Trainer, and compare them with the checkpoint."""
        if self.start.folder is not None:
            checks.check_writable(self.start.folder, "pictures" if self.pictures else self.command)
        with in_one_line():  # a class that a flag names may be missing, or refuse its arguments
            super().instantiate_classes()
        if self.start.checkpoint is not None:
            assert self.ckpt_path is not None
            check_class(self.start.checkpoint, type(self.model), self.ckpt_path)
            check_weights(self.start.checkpoint["state_dict"], self.model.state_dict(), self.ckpt_path)
            if self.command == "fit":
                check_states(self.start.checkpoint, self.trainer)
            else:
                forget_training(self.start.checkpoint)
        prefer_onednn(self.model)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer, with this package's defaults where the user has chosen nothing of the kind."""
        config, seed = self._get(self.config_init, "trainer"), self.options.seed_everything
        seed = self.datamodule.seed if seed is False else seed
        command = "pictures" if self.pictures else self.command
        options = trainer_options(command, config, self.start, seed, self.save_config, self.threads.why)
        if self.pictures and config.devices == "auto":
            options["devices"] = 1  # one is enough for a few digits
        trainer = super().instantiate_trainer(**kwargs, **options)
        # Lightning takes the rank from variables, which may be left over. DDP sets it as this does.
        rank_zero_only.rank = trainer.global_rank  # type: ignore[attr-defined]  # a function's attribute
        speed.hide_missing_gpu()
        return trainer

    def after_instantiate_classes(self) -> None:
        """Have the network's own optimizer take a scheduler, too. LightningCLI drops one without ``--optimizer``."""
        optimizer, scheduler = (self._get(self.config_init, name) for name in ("optimizer", "lr_scheduler"))
        if scheduler and not optimizer:
            own = self.model.configure_optimizers
            self.model.configure_optimizers = partial(_schedule, self.model, own, scheduler)
        if self.command == "fit":
            checks.try_optimizer(optimizer, scheduler)

    def _run_subcommand(self, subcommand: str) -> None:
        """Do nothing: ``commands.py`` runs the command."""

    def save_config(self, path: Path) -> None:
        """Write the options of the run as YAML."""
        options = self.options.clone()
        options.ckpt_path = None  # where a run began is not part of what it is
        options.threads = torch.get_num_threads()
        if "download" in options.data:
            options.data.download = False
        text: str = self._parser(self.command).dump(options, skip_none=False)
        write_atomically(path, text.encode())


def _program() -> str | None:
    """How this process was started, or ``None`` if that is no command to repeat: by a notebook, or by ``python -c``."""
    main, script = sys.modules["__main__"], sys.argv[0]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.origin == script:
        return f"python -m {spec.name.removesuffix('.__main__')}"
    return f"python {shlex.quote(script)}" if hasattr(main, "__file__") and script and Path(script).exists() else None


def _schedule(model: LightningModule, own: Callable[[], Any], scheduler: Any) -> Any:
    """The network's own optimizer with a scheduler, as ``configure_optimizers`` returns them."""
    optimizer = own()
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(
            f"--lr_scheduler needs a network with one optimizer, {type(model).__name__} configures "
            f"{type(optimizer).__name__}: leave the flag out, or give --optimizer, too"
        )
    return LightningCLI.configure_optimizers(model, optimizer, instantiate_class(optimizer, scheduler))
