"""LightningCLI with this package's defaults: the commands ``fit``, ``validate``, ``test`` and ``predict``."""

import contextlib
import json
import os
import random
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, instantiate_class
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.model_helpers import is_overridden

from mnist_lightning.cli import arguments, messages, processes, speed, threads
from mnist_lightning.cli.checks import check_number, check_optimizer, check_writable
from mnist_lightning.cli.predict_pictures import HELP, predict_pictures, split
from mnist_lightning.cli.trainer import trainer_options
from mnist_lightning.data import MNISTDataModule
from mnist_lightning.data.sampler import check_processes
from mnist_lightning.errors import InputError
from mnist_lightning.files import write_atomically
from mnist_lightning.model import MNISTClassifier, two_layers
from mnist_lightning.model.linear import openmp_may_give_fewer, prefer_onednn
from mnist_lightning.results.curves import curves_picture
from mnist_lightning.results.report_callback import ReportCallback
from mnist_lightning.results.style import save
from mnist_lightning.runs import Run
from mnist_lightning.runs.folder import RunFolder
from mnist_lightning.runs.progress import of_a_batch, say, unbroken
from mnist_lightning.runs.resume import check_resumable
from mnist_lightning.runs.stopping import StopOnSIGTERM, stopped_early

PROGRAM = "python -m mnist_lightning"
DEFAULT_EPOCHS = 5  # the tutorial's


def run_command(args: Sequence[str], model_class: type[LightningModule], data_class: type[MNISTDataModule]) -> None:
    """Run one of LightningCLI's commands."""
    stop = StopOnSIGTERM()
    with processes.exit_codes(stop), stop, _put_back():
        MNISTCLI(args, model_class, data_class, stop)


@contextlib.contextmanager
def _put_back() -> Iterator[None]:
    """Put back what a command sets for the whole process: another program may have called it."""
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    deterministic, benchmark = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    generators = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002  # numpy's global one
    variables = dict(os.environ)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)
        if torch.get_deterministic_debug_mode() != deterministic:  # otherwise this imports much for nothing
            torch.set_deterministic_debug_mode(deterministic)
        torch.backends.cudnn.benchmark = benchmark
        if "PL_GLOBAL_SEED" in os.environ:  # not after `--seed_everything false`
            torch.set_rng_state(generators[0])
            np.random.set_state(generators[1])  # noqa: NPY002  # as above
            random.setstate(generators[2])
        os.environ.clear()
        os.environ.update(variables)


class MNISTCLI(LightningCLI):
    """Parses one command line, makes the model, the data and the Trainer, and runs the command."""

    def __init__(self, args: Sequence[str], model_class: type[Any], data_class: type[Any], stop: StopOnSIGTERM) -> None:
        self.program = _program(model_class, data_class)
        self.stop = stop
        args, self.pictures = split(args)  # for `predict`
        self._typed = args[0]  # the command, or `--config` before it
        strict = {name: dict(arguments.STRICT) for name in self.subcommands()}
        super().__init__(
            model_class,
            data_class,
            save_config_callback=None,  # RunFolder saves it
            trainer_defaults={"max_epochs": DEFAULT_EPOCHS, "enable_model_summary": False},
            seed_everything_default=arguments.DEFAULT_SEED,
            parser_kwargs={"prog": self.program or PROGRAM, **arguments.STRICT, **strict},
            args=args,
            load_from_checkpoint_support=False,  # otherwise a checkpoint names the function that makes its model
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # a static method there
        # Only the command that was typed: each has a parser of its own, which takes 0.1 s to make.
        # Without `weights_only`: a checkpoint is data, never code.
        commands = {name: skip | {"weights_only"} for name, skip in LightningCLI.subcommands().items()}
        return {self._typed: commands[self._typed]} if self._typed in commands else commands

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
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
            parser.epilog = HELP
        arguments.try_int_before_float(parser)
        arguments.link_shapes(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse twice: what the user gave says from which run the command starts, and this run has the defaults."""
        typed = [arg for arg in args if not arg.startswith("--print_config")]
        everything = arguments.parse(parser, typed, defaults=False)
        command = str(everything.subcommand)
        given, own, resume = everything[command], self._parser(command), command == "fit"
        self.run = None
        if not resume or given.get("ckpt_path") is not None:
            self.run = Run.open(given.get("ckpt_path"), given.get("trainer.default_root_dir") or ".", resume)
            classes: dict[str, Any] = {"model": self.model_class, "data": self.datamodule_class}
            arguments.take_options(own, given, self.run, classes, resume)
        defaults = own.get_defaults()
        seed = arguments.choose_seed(given.get("seed_everything", defaults.seed_everything))
        if self.run is None and seed is not None and "data.seed" in defaults:  # a user's class may have none
            own.set_defaults({"data.seed": seed})
        self.config = arguments.parse(parser, args)
        self.options: Namespace = self.config[command]
        self.options.seed_everything = False if seed is None else seed
        self.options.ckpt_path = None  # self.run has it; LightningCLI would take options from it
        trained = defaults.threads
        if self.checkpoint is not None:
            trained = self.checkpoint.get("num_threads", trained)
        self.threads = threads.choose(given.get("threads"), trained)

    def before_instantiate_classes(self) -> None:
        torch.set_float32_matmul_precision(self.options.matmul_precision)
        self.threads.take()
        if openmp_may_give_fewer():  # with more than one, torch's products of bfloat16 would be wrong
            self.threads = threads.Threads(1, "OpenMP may give fewer")
            self.threads.take()

    def instantiate_classes(self) -> None:
        """Make model, data and Trainer, and compare them with the run that the command starts from."""
        run, checkpoint, trainer = self.run, self.checkpoint, self.options.trainer
        if self.subcommand != "fit" and run is not None:
            check_writable(run.folder, self.command)
        with arguments.in_one_line():  # a class that a flag names may be missing, or refuse its arguments
            super().instantiate_classes()
        if self.subcommand == "fit":
            check_optimizer(self.options, type(self.model))
        if run is not None and checkpoint is not None:
            run.check(self.model)
            if self.subcommand == "fit":
                check_resumable(run, trainer.max_epochs, trainer.max_steps)
        prefer_onednn(self.model)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer, with this package's defaults where the user has chosen nothing of the kind."""
        config, seed = self._get(self.config_init, "trainer"), self.options.seed_everything
        check_number(config)
        if seed is False:
            seed = self.datamodule.seed
        options = trainer_options(self.command, config, self.run, seed, self.save_config, self.threads.why)
        options["callbacks"].append(self.stop)
        if self.pictures and config.devices == "auto":
            options["devices"] = 1  # one is enough for a few digits
        self.stop.trainer = trainer = super().instantiate_trainer(**kwargs, **options)
        # Lightning takes the rank from variables, which may be left over. DDP sets it as this does.
        rank_zero_only.rank = trainer.global_rank  # type: ignore[attr-defined]  # a function's attribute
        speed.hide_missing_gpu()
        return trainer

    def after_instantiate_classes(self) -> None:
        """Have the network's own optimizer take a scheduler, too. LightningCLI drops one without ``--optimizer``."""
        scheduler, own = self._get(self.config_init, "lr_scheduler"), self.model.configure_optimizers
        if scheduler and not self.options.get("optimizer"):

            def with_scheduler() -> Any:
                optimizer = own()
                return self.configure_optimizers(self.model, optimizer, instantiate_class(optimizer, scheduler))

            self.model.configure_optimizers = with_scheduler

    def save_config(self, path: Path) -> None:
        options = self.options.clone()
        options.threads = torch.get_num_threads()
        if "download" in options.data:
            options.data.download = False  # no run that is repeated asks for the network
        text: str = self._parser(str(self.subcommand)).dump(options, skip_none=False)
        write_atomically(path, text.encode())

    def fit(self, **_: Any) -> None:
        """Train, then test the network as it stands at the end."""
        if not is_overridden("test_step", self.model):
            raise InputError(f"{type(self.model).__name__} has no test_step, and fit ends with a test: add one")
        trainer, files = self.trainer, _callback(self.trainer, RunFolder)
        check_processes(0, self.datamodule.batch_size, trainer.world_size)  # before the others are started
        try:
            trainer.fit(self.model, self.datamodule, ckpt_path=self.ckpt_path)
            early = [callback.monitor for callback in trainer.early_stopping_callbacks if stopped_early(callback)]
            if early and trainer.is_global_zero:
                say("Stopped", f"early after {trainer.current_epoch} epochs, by {early[0]}")
            train_acc = None if "train_acc" in of_a_batch(trainer) else trainer.callback_metrics.get("train_acc")
            trainer.test(self.model, self.datamodule, verbose=False)
        except BaseException as error:
            if trainer.is_global_zero and not processes.lost_another(error):
                self._leave(files, error)
            raise
        finally:
            if files is not None:
                files.release()
        if not trainer.is_global_zero:
            return
        # Numbers first, pictures last: the disk may become full.
        messages.say_result("test", trainer.callback_metrics)
        messages.say_gap(train_acc, trainer.callback_metrics.get("test_acc"))
        if files is not None and files.folder is not None:
            _save_result("test", trainer.callback_metrics, files.folder)
            _draw_curves(files, self.datamodule.name)
            commands = ["predict" if is_overridden("predict_step", self.model) else "test"]
            if _is_drawn_for(self.model, self.datamodule):
                commands.append("draw")
            twice = 2 * max(trainer.max_epochs or 0, trainer.current_epoch, 1)
            messages.say_next(commands, self.program, self.root, files.folder, twice, bool(early))

    def _leave(self, files: RunFolder | None, error: BaseException) -> None:
        """Say how to go on with a run that ends before its time, and draw its curves as far as they go."""
        metrics, folder = self.trainer.callback_metrics, None if files is None else files.folder
        if isinstance(error, (SystemExit, KeyboardInterrupt)):
            messages.say_stopped(error, self.program, self.root, folder)
        elif "test_loss" in metrics and metrics["test_loss"].isfinite():
            messages.say_result("test", metrics)  # it was computed, but could not be written
        with contextlib.suppress(InputError):  # the disk may be full: the error says so
            _draw_curves(files, self.datamodule.name)

    def validate(self, **_: Any) -> None:
        """Evaluate a run on the images it held out."""
        if self.run is not None and not self.datamodule.val_size:
            raise InputError(
                f"{str(self.run.folder)!r} was trained without a validation split (val_size 0): use 'test', or train "
                "with --data.val_size 10000"
            )
        folder = self._begin()
        self.trainer.validate(self.model, self.datamodule, ckpt_path=self.ckpt_path, verbose=False)
        if self.trainer.is_global_zero:
            messages.say_result("validate", self.trainer.callback_metrics)
            _save_result("validate", self.trainer.callback_metrics, folder)
            say("Written", f"validate.json in {unbroken(folder)}")

    def test(self, **_: Any) -> None:
        """Evaluate a run on the test images, and report on its mistakes."""
        folder = self._begin()
        self.trainer.test(self.model, self.datamodule, ckpt_path=self.ckpt_path, verbose=False)
        if not self.trainer.is_global_zero:
            return
        messages.say_result("test", self.trainer.callback_metrics)
        report = _callback(self.trainer, ReportCallback).report
        if report is not None:
            print(report.table(), flush=True)
        _save_result("test", self.trainer.callback_metrics, folder)
        written = "test.json"
        if report is not None:
            report.write(folder)
            written = "test.json, report.json and its pictures"
        say("Written", f"{written} in {unbroken(folder)}")

    def predict(self, **_: Any) -> None:
        """Write a run's predictions for the test images, or read pictures."""
        if not is_overridden("predict_step", self.model):
            raise InputError(
                f"{type(self.model).__name__} has no predict_step: add one that returns probabilities (B, 10)"
            )
        if self.pictures and self.run is not None:
            predict_pictures(self.pictures, self.run, self.model, self.datamodule, self.trainer)
            return
        folder = self._begin()
        self.trainer.predict(self.model, self.datamodule, ckpt_path=self.ckpt_path)
        if self.trainer.is_global_zero:
            say("Written", unbroken(folder / "predictions.csv"))

    def _begin(self) -> Path:
        assert self.run is not None
        if self.trainer.is_global_zero:
            say("From", unbroken(self.run.path))
        return self.run.folder

    @property
    def command(self) -> str:
        """The command, or ``"pictures"`` for ``predict`` with pictures."""
        return "pictures" if self.pictures else str(self.subcommand)

    @property
    def checkpoint(self) -> dict[str, Any] | None:
        return None if self.run is None else self.run.checkpoint

    @property
    def root(self) -> str | None:
        return self.options.trainer.default_root_dir  # type: ignore[no-any-return]

    @property
    def ckpt_path(self) -> str | None:
        return None if self.run is None or self.run.path is None else str(self.run.path)


def _program(*classes: type) -> str | None:
    """How to call a command for these classes, for messages; ``None`` in a notebook, or after ``python -c``."""
    if all(cls.__module__.startswith("mnist_lightning.") for cls in classes):
        return PROGRAM
    main, script = sys.modules["__main__"], sys.argv[0]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.origin == script:
        return f"python -m {spec.name.removesuffix('.__main__')}"
    return f"python {shlex.quote(script)}" if hasattr(main, "__file__") and script and Path(script).exists() else None


def _is_drawn_for(model: LightningModule, data: MNISTDataModule) -> bool:
    """Whether ``draw`` will make a page for this network, as far as is known."""
    is_own = type(model).forward is MNISTClassifier.forward and two_layers(model) is not None
    return is_own and data.image_shape == (1, 28, 28) and data.transform is None


def _save_result(command: str, metrics: dict[str, Any], folder: Path) -> None:
    found = {name: float(value) for name, value in metrics.items()}
    write_atomically(folder / f"{command}.json", (json.dumps(found, indent=2) + "\n").encode())


def _draw_curves(files: RunFolder | None, name: str) -> None:
    log = files.logger if files is not None else None
    if log is not None and log.folder is not None and log.rows:  # it has its folder once the run has begun
        save(curves_picture(log.rows, name), log.folder / "curves.png")


def _callback(trainer: Trainer, kind: type) -> Any:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)
