"""LightningCLI with this package's defaults: a folder for every run, and runs found again."""

import contextlib
import copy
import json
import logging
import math
import numbers
import os
import random
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as distributed
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import register_type
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, ReduceLROnPlateau, instantiate_class
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mnist_lightning.cli.bad_input import (
    YAML,
    as_list,
    check_folder,
    check_path,
    check_trainer,
    has_kind,
    in_one_line,
    is_ctrl_c,
    is_refused_by_a_callback,
    one_line,
    parse,
)
from mnist_lightning.cli.front_door import COMMANDS, interruptible
from mnist_lightning.cli.processes import (
    OBSERVER,
    RollCall,
    is_connected,
    lost_another,
    started_by_srun,
    started_by_torchrun,
)
from mnist_lightning.cli.speed import NoProfiler
from mnist_lightning.data.datamodule import MNISTDataModule
from mnist_lightning.data.idx_files import TEST_IMAGES
from mnist_lightning.errors import InputError, shown
from mnist_lightning.files import forget_training, load_checkpoint, plain_hyper_parameters, write_atomically
from mnist_lightning.model.linear import prefer_onednn, teams_may_shrink
from mnist_lightning.results import figures, inspection
from mnist_lightning.results.predictions import PredictionsCSV
from mnist_lightning.results.report_callback import ReportCallback
from mnist_lightning.runs.checkpoints import EpochCheckpoint, SafeCheckpointIO, checkpoint_of, has_checkpoint
from mnist_lightning.runs.folder import RunFolder, is_own_run, newest_run
from mnist_lightning.runs.history import MetricsCSV
from mnist_lightning.runs.progress import EpochProgress, say, whole
from mnist_lightning.runs.resume import SameOptimizers, check_resumable, check_states, check_weights, restoring
from mnist_lightning.runs.seeds import EpochSeed, seed_of
from mnist_lightning.runs.stopping import StayStopped, StopOnSIGTERM, stopped_early

DEFAULT_SEED = 0
DEFAULT_EPOCHS = 5  # the tutorial's
# torchvision annotates the degrees of a rotation with it; jsonargparse does not know it by itself.
register_type(numbers.Number, serializer=float, deserializer=float, type_check=isinstance)
# jsonargparse makes a path of null, or ~: one that is called "None".
register_type(os.PathLike, os.fspath, Path, type_check=isinstance, fail_already_registered=False)

PROGRAM = "python -m mnist_lightning"

PREFIXES = {"test": "test", "validate": "val"}  # of the figures that a command logs
# What a command writes beside a checkpoint.
WRITES = {"validate": ["validate.json"], "predict": ["predictions.csv"]}
WRITES["test"] = ["test.json", "report.json", "confusion_matrix.png", "mistakes.png", "first_layer.png"]


def run(args: Sequence[str], model_class: type[LightningModule], data_class: type[MNISTDataModule]) -> None:
    """Run one command of LightningCLI.

    Raises:
        InputError: If the input cannot be used.
        SystemExit: With code 143 after SIGTERM, 130 after Ctrl-C, 1 where another process is gone.
    """
    roll_call, stop = RollCall(), StopOnSIGTERM()
    try:
        with stop, _restored():
            connected = is_connected()
            MNISTCLI(list(args), model_class, data_class, stop, roll_call)
            if is_connected() and not connected:
                # Lightning leaves Gloo's threads to the end of the process, which they may turn into an abort.
                distributed.destroy_process_group()
    except SystemExit as stopped:
        # Lightning exits with 0 after SIGTERM and with 1 after Ctrl-C; to a shell they are 143 and 130.
        if isinstance(stopped, SIGTERMException):
            raise SystemExit(128 + signal.SIGTERM) from None
        raise SystemExit(128 + signal.SIGINT if is_ctrl_c(stopped) else stopped.code) from None
    except Exception as error:
        roll_call.failed(error)
        if lost_another(error):
            print(
                "mnist_lightning: error: another process of this run is gone, and this one ends with it; "
                "'fit --ckpt_path last' goes on from the last epoch that was whole",
                file=sys.stderr,
            )
            logging.getLogger(OBSERVER).setLevel(logging.WARNING)  # it would say the same
            raise SystemExit(1) from None
        if stop.trainer is not None and stop.trainer.strategy.launcher is not None:
            stop.trainer.strategy.launcher.kill(signal.SIGTERM)  # this process says why it ends: the others need not
        if isinstance(error, MisconfigurationException) or is_refused_by_a_callback(error):
            raise InputError(one_line(error)) from error
        raise


def inspect(args: Sequence[str], data_class: type[MNISTDataModule]) -> None:
    """Print what the data is, and write pictures of it.

    Raises:
        InputError: If the input cannot be used.
    """
    parser = ArgumentParser(
        prog=f"{PROGRAM} inspect",
        description=COMMANDS["inspect"],
        exit_on_error=False,
        allow_abbrev=False,
        parser_mode=YAML,
    )
    parser.add_argument("-c", "--config", action="config", help="A YAML file with these options.")
    # What is shown are the images as they lie in the files: nothing transforms them.
    parser.add_class_arguments(data_class, "data", fail_untyped=False, skip={"train_transform"})
    parser.add_argument("--out", type=str, default="inspection", help="The folder for the pictures.")
    options = parse(parser, args)
    with in_one_line():
        datamodule: MNISTDataModule = parser.instantiate_classes(options).data
    check_path("data.data_dir", options.data.data_dir)
    check_path("out", options.out)
    datamodule.setup("fit")
    datamodule.setup("test")
    print(inspection.describe(datamodule), flush=True)
    interruptible()
    for path in inspection.draw(datamodule, Path(options.out)):
        say("Written", whole(path))


class MNISTCLI(LightningCLI):
    """The commands, for one command line.

    Args:
        args: The arguments, the command first (or ``--config FILE`` before it).
        model_class: The network's class.
        data_class: The data's class.
        stop: What SIGTERM does.
        roll_call: What the processes of several machines tell each other before they begin.
    """

    def __init__(
        self,
        args: list[str],
        model_class: type[LightningModule],
        data_class: type[MNISTDataModule],
        stop: StopOnSIGTERM,
        roll_call: RollCall,
    ) -> None:
        own = all(made.__module__.startswith("mnist_lightning.") for made in (model_class, data_class))
        self.program = PROGRAM if own else f"python {shlex.quote(sys.argv[0])}"
        self.stop = stop
        self.roll_call = roll_call
        self.command = args[0] if args[0] in COMMANDS else None
        self.run_folder: Path | None = None
        self.run_files: RunFolder | None = None
        self.checkpoint: dict[str, Any] | None = None
        self.report: ReportCallback | None = None
        # Half a flag's name is a mistake, not a flag.
        strict: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False, "parser_mode": YAML}
        super().__init__(
            model_class,
            data_class,
            save_config_callback=None,  # RunFolder saves it
            trainer_defaults={"max_epochs": DEFAULT_EPOCHS, "enable_model_summary": False},
            seed_everything_default=DEFAULT_SEED,
            parser_kwargs={"prog": self.program, **strict, **{name: dict(strict) for name in self.subcommands()}},
            args=args,
            # Otherwise a checkpoint names the function that makes its model.
            load_from_checkpoint_support=False,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # a static method there
        """Only the command that was typed: each has a parser of its own, and they take 0.1 s apiece."""
        # Not `weights_only`: a checkpoint is data, never code.
        commands = {name: skip | {"weights_only"} for name, skip in LightningCLI.subcommands().items()}
        return commands if self.command is None else {self.command: commands[self.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The one option that is neither the Trainer's nor the model's nor the data's."""
        parser.add_argument(
            "--matmul_precision",
            type=Literal["highest", "high", "medium"],
            default="highest",
            help="How float32 matrices are multiplied, see torch.set_float32_matmul_precision.",
        )

    def before_instantiate_classes(self) -> None:
        """Tell torch how to multiply."""
        torch.set_float32_matmul_precision(self._get(self.config, "matmul_precision"))
        if teams_may_shrink():
            torch.set_num_threads(1)  # with more, what torch multiplies in bfloat16 would be wrong
            os.environ["OMP_NUM_THREADS"] = "1"  # or else Lightning sets another number for several processes

    # ---------------------------------------------------------------- parsing

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, after a checkpoint has had its say: a run's own configuration becomes the default."""
        if {"-h", "--help"} & set(args):
            parser.parse_args(args)
        with in_one_line():
            self._parse_arguments(parser, args)

    def _parse_arguments(self, parser: LightningArgumentParser, args: list[str]) -> None:
        given = self._given(parser, args)
        command: str = given.subcommand
        options: Namespace = given[command]
        for group in ("trainer", "model", "data"):
            if not isinstance(options.get(group, options), Namespace):
                raise InputError(f"{group} must have options of its own, as --{group}.NAME, got {options[group]!r}")
        checkpoint_path = self._find_checkpoint(command, options)
        if command == "fit" and self.run_folder is not None:
            # What stands later in the arguments wins: the user's flags over the run's configuration.
            at = args.index(command) + 1
            args = [*args[:at], "--config", str(self.run_folder / "config.yaml"), *args[at:]]
            self._check_same(options, self._given(parser, args[: at + 2])[command], ["seed_everything"], "run")
        if checkpoint_path is not None:
            self.checkpoint = load_checkpoint(checkpoint_path)
            self._start_from(self.checkpoint, command, options)
        seed = self._seed(self._given(parser, args)[command])
        if seed is not None and self.checkpoint is None:
            self._subcommand_parsers[command].set_defaults({"data.seed": seed})
        self.config = parse(parser, args)
        self.config[command].ckpt_path = None if checkpoint_path is None else str(checkpoint_path)
        self.config[command].seed_everything = False if seed is None else seed
        if command == "fit":
            self._check_optimizer(options, args)
        if command == "fit" and self.checkpoint is not None and checkpoint_path is not None:
            check_resumable(self.checkpoint, self.config[command], checkpoint_path)
        check_path("trainer.default_root_dir", self.config[command].trainer.default_root_dir)
        check_path("data.data_dir", self.config[command].data.get("data_dir"))
        check_trainer(self.config[command].trainer)

    def _parse_ckpt_path(self) -> None:
        """Done already: here, LightningCLI lets a checkpoint silently beat the flags."""

    @staticmethod
    def _given(parser: LightningArgumentParser, args: Sequence[str]) -> Namespace:
        """What the user gave, by flags and config files, without any defaults."""
        return parse(parser, [arg for arg in args if not arg.startswith("--print_config")], defaults=False)

    def _seed(self, options: Namespace) -> int | None:
        """The run's seed, or ``None`` if the user wants none."""
        seed = options.get("seed_everything", seed_of(self.checkpoint, DEFAULT_SEED))
        if seed is False:
            return None
        if seed is True:  # any seed, but the same on all processes that this one starts
            started = started_by_torchrun() or {"LOCAL_RANK", "MASTER_PORT"} <= os.environ.keys()
            seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if started else random.SystemRandom().randrange(2**32)
        if not 0 <= seed < 2**32:
            raise InputError(f"seed_everything must be a whole number from 0 to {2**32 - 1}, got {seed}")
        return int(seed)

    def _find_checkpoint(self, command: str, options: Namespace) -> Path | None:
        """The checkpoint that a command starts from; sets the run's folder that it belongs to."""
        wanted, root = options.get("ckpt_path"), Path(options.get("trainer.default_root_dir") or ".")
        if command == "fit" and wanted is None:
            return None
        if wanted in (None, "last"):
            self.run_folder = newest_run(root, with_checkpoint=command != "fit")
            return checkpoint_of(self.run_folder, whole=command == "fit")
        path = Path(wanted)
        if not path.is_file():
            raise InputError(f"no checkpoint at {wanted!r}: give a .ckpt file, or 'last' for the newest run")
        folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
        # A stranger's folder may hold a stranger's config, and a config is code: only a run that lies
        # among one's own is resumed with its own; from elsewhere, only the checkpoint is taken.
        if command != "fit" or (is_own_run(folder, root) and (folder / "config.yaml").is_file()):
            self.run_folder = folder
        return path

    def _start_from(self, checkpoint: dict[str, Any], command: str, options: Namespace) -> None:
        """Take the checkpoint's model and data for defaults, and refuse flags that contradict it."""
        saved: dict[str, Any] = {}
        classes: list[tuple[str, Any]] = [("model", self.model_class), ("data", self.datamodule_class)]
        for name, cls in classes:
            values = checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_KEY, {})
            # A run that is resumed has all of its options in its configuration.
            given = values if command == "fit" and self.run_folder is not None else options.get(name) or {}
            plain = plain_hyper_parameters(cls, values, given)
            saved |= {f"{name}.{key}": value for key, value in plain.items() if self._has(command, f"{name}.{key}")}
        fixed = [*(key for key in saved if key.startswith("model.")), "data.val_size", "data.train_size"]
        if command == "fit":
            seed = seed_of(checkpoint, None)
            saved |= {} if seed is None else {"seed_everything": seed}
            fixed += ["seed_everything", "data.batch_size", "data.seed"]
        self._check_same(options, saved, fixed, "checkpoint")
        self._subcommand_parsers[command].set_defaults(saved)

    def _has(self, command: str, key: str) -> bool:
        return any(action.dest == key for action in self._subcommand_parsers[command]._actions)

    @staticmethod
    def _check_same(options: Namespace, saved: Any, keys: Sequence[str], whose: str) -> None:
        for key in keys:
            if key in options and key in saved and options[key] != saved[key]:
                raise InputError(
                    f"--{key} {options[key]} contradicts the {whose}'s {shown(saved[key])}: leave the flag out, or "
                    "train anew"
                )

    def _check_optimizer(self, options: Namespace, args: Sequence[str]) -> None:
        """Refuse the network's own optimizer options beside another optimizer, which would ignore them."""
        optimizer = options.get("optimizer")
        for name in ("learning_rate", "weight_decay") if optimizer else ():
            parameter = signature(cast(type[LightningModule], self.model_class)).parameters.get(name)
            given, flag = options.get(f"model.{name}"), f"--model.{name}"
            typed = any(arg.partition("=")[0] == flag for arg in args)
            if parameter is not None and given is not None and (typed or given != parameter.default):
                right = {"learning_rate": "--optimizer.lr", "weight_decay": "--optimizer.weight_decay"}[name]
                raise InputError(
                    f"{flag} {given} is for the network's own optimizer, and --optimizer names another: use {right}"
                )

    # ---------------------------------------------------------- instantiation

    def after_instantiate_classes(self) -> None:
        """Have the network's own optimizer take a scheduler, too: LightningCLI drops one without ``--optimizer``."""
        scheduler = self._get(self.config_init, "lr_scheduler")
        if scheduler and not self._get(self.config_init, "optimizer"):
            own = self.model.configure_optimizers
            self.model.configure_optimizers = partial(_schedule, self.model, own, scheduler)
        if self.subcommand == "fit":
            with in_one_line("--optimizer, --lr_scheduler: "):
                self._try_optimizer()
        elif self.trainer.world_size > 1:
            self.roll_call.ready(self._get(self.config, "ckpt_path"))
        interruptible()  # from here on, Ctrl-C is an exception

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer, with this package's defaults where the user has chosen nothing of the kind."""
        config = self._get(self.config_init, "trainer")
        callbacks, plugins = as_list(config.callbacks), as_list(config.plugins)
        logger: Any = [item for item in as_list(config.logger) if not isinstance(item, bool)]
        if config.enable_progress_bar is not False and not has_kind(callbacks, ProgressBar):
            callbacks.append(EpochProgress())
        if self.subcommand == "fit" and not config.fast_dev_run:
            if config.enable_checkpointing is not False and not has_kind(callbacks, EpochCheckpoint):
                callbacks.append(EpochCheckpoint())
            log = None if config.logger is False else MetricsCSV()
            logger += [log] if log else []
            root = Path(config.default_root_dir or ".")
            start = self.checkpoint if self.run_folder is None else None
            self.run_files = RunFolder(root, self._save_config, log, self.run_folder, start)
            callbacks.insert(0, self.run_files)
        if self.subcommand == "fit":
            seed = self._get(self.config, "seed_everything")
            seed = self.datamodule.seed if seed is False else seed
            callbacks += [EpochSeed(seed), SameOptimizers(), StayStopped(), self.stop]
        else:
            kwargs["enable_checkpointing"] = False
        if self.subcommand == "test":
            assert self.run_folder is not None
            self.report = ReportCallback()
            callbacks.append(self.report)
        if self.subcommand == "predict":
            assert self.run_folder is not None
            callbacks.append(PredictionsCSV(self.run_folder / "predictions.csv"))
        if not has_kind(plugins, CheckpointIO):
            plugins.append(SafeCheckpointIO(self._get(self.config, "ckpt_path"), self.checkpoint))
        if SLURMEnvironment.detect() and not started_by_srun() and not has_kind(plugins, ClusterEnvironment):
            plugins.append(LightningEnvironment())  # a shell inside an allocation: its variables are about the job
        if config.profiler is None:
            kwargs["profiler"] = NoProfiler()
        trainer = super().instantiate_trainer(callbacks=callbacks, logger=logger or False, plugins=plugins, **kwargs)
        # Lightning takes it from variables, which may be left over; DDP sets it as this does.
        rank_zero_only.rank = trainer.global_rank  # type: ignore[attr-defined]  # it is a function's attribute
        self.stop.trainer = trainer
        if not torch.cuda.is_available():
            # A CUDA build of torch looks for a device on every optimizer step, and on a machine without
            # one opens NVIDIA's management library anew each time: 0.17 ms of a step of 6 ms.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return trainer

    def _save_config(self, path: Path) -> None:
        config = self.config[self.subcommand].clone()
        config.ckpt_path = None  # what a run began from is no part of what it is
        text: str = self._parser(self.subcommand).dump(config, skip_none=False)
        write_atomically(path, text.encode())

    def instantiate_classes(self) -> None:
        """Make model, data and Trainer, and see that they fit the checkpoint, and that it lies where one may write."""
        if self.run_folder is not None:
            check_folder(self.run_folder, WRITES.get(str(self.subcommand), []))
        with in_one_line():  # what the flags name does not take its arguments, or is not there
            super().instantiate_classes()
        if self.checkpoint is not None:
            check_weights(self.checkpoint["state_dict"], self.model.state_dict(), self._get(self.config, "ckpt_path"))
            if self.subcommand == "fit":
                check_states(self.checkpoint, self.trainer)
            else:
                forget_training(self.checkpoint)
        prefer_onednn(self.model)

    def _run_subcommand(self, subcommand: str) -> None:
        with restoring(str(self._get(self.config, "ckpt_path"))):
            super()._run_subcommand(subcommand)

    def _try_optimizer(self) -> None:
        """Step once with what the flags name, on weights of its own: some optimizers refuse only then."""
        optimizer_init, scheduler_init = (self._get(self.config_init, key) for key in ("optimizer", "lr_scheduler"))
        weights = torch.nn.Parameter(torch.zeros(2, 2))
        weights.grad = torch.zeros(2, 2)
        own = torch.optim.RMSprop([weights])
        optimizer: Any = instantiate_class([weights], optimizer_init) if optimizer_init else own
        scheduler: Any = instantiate_class(optimizer, scheduler_init) if scheduler_init else None
        optimizer.step(lambda: torch.zeros(()))
        if scheduler is not None:
            scheduler.step(*[0.0] * isinstance(scheduler, ReduceLROnPlateau))

    # ------------------------------------------------------------ subcommands

    def fit(self, model: LightningModule, datamodule: MNISTDataModule, **kwargs: Any) -> None:
        """Train, then test the network as it stands at the end."""
        try:
            self._fit(model, datamodule, kwargs)
        finally:
            if self.run_files is not None:
                self.run_files.release()

    def _fit(self, model: LightningModule, datamodule: MNISTDataModule, kwargs: Any) -> None:
        trainer = self.trainer
        # What is wrong with the data is said before anything is made or printed.
        datamodule.check_processes(trainer.world_size)
        if self.checkpoint is not None and type(datamodule).__qualname__ in self.checkpoint:
            datamodule.check_transform(self.checkpoint[type(datamodule).__qualname__])
        datamodule.setup("fit")
        if datamodule.train_transform is not None and datamodule.train_dataset is not None:
            # Says what is wrong with its result; by a copy, which draws nothing that training would have drawn.
            with in_one_line("--data.train_transform: "):
                dataset = copy.copy(datamodule.train_dataset)
                dataset.transform = copy.deepcopy(datamodule.train_transform)
                dataset[0]
        self._check_used(datamodule)
        self._check_limits(datamodule)
        self._check_callbacks()
        if trainer.world_size > 1:
            config = self.run_folder and self.run_folder / "config.yaml"
            self.roll_call.ready(self._get(self.config, "ckpt_path"), config)
        if trainer.is_global_zero:
            self._introduce()
        try:
            trainer.fit(model, datamodule=datamodule, **kwargs)
            early = [callback.monitor for callback in trainer.early_stopping_callbacks if stopped_early(callback)]
            if early and trainer.is_global_zero:
                say("Stopped", f"early after {trainer.current_epoch} epochs, by {early[0]}")
            train_acc = trainer.callback_metrics.get("train_acc")
            trainer.test(model, datamodule=datamodule, verbose=False)
        except BaseException as error:
            if trainer.is_global_zero and not lost_another(error):
                self._leave(error)
            raise
        if not trainer.is_global_zero:
            return
        # First what was computed, then what was drawn from it: the disk may become full.
        self._print_result("test")
        test_acc = trainer.callback_metrics.get("test_acc")
        if train_acc is not None and test_acc is not None:
            gap = 100 * (float(train_acc) - float(test_acc))
            say("Gap", f"{gap:+.2f} points from test accuracy up to training accuracy")
        folder = self.run_files.folder if self.run_files else None
        if folder is not None:
            self._save_result("test", folder)
            self._draw_curves()
            names = (whole(path.name + "/" * path.is_dir()) for path in sorted(folder.glob("[!.]*")))
            say("Run", f"{whole(folder)}: {', '.join(names)}")
            if has_checkpoint(folder):
                more = f"--trainer.max_epochs {2 * max(trainer.max_epochs or 0, trainer.current_epoch, 1)}"
                say("Next", self._command("predict", folder))
                say("", self._command("fit", folder, *["--trainer.callbacks null"] * bool(early), more))

    def _leave(self, error: BaseException) -> None:
        """Say how to go on with a run that ends before its time, and draw what there is of it."""
        folder = self.run_files.folder if self.run_files else None
        if isinstance(error, (SystemExit, KeyboardInterrupt)):
            code = f"sys.exit({getattr(error, 'code', None)!r})"
            by = "SIGTERM" if isinstance(error, SIGTERMException) else "Ctrl-C" if is_ctrl_c(error) else code
            kept = checkpoint_of(folder, whole=True) if folder else None
            say("Stopped", f"by {by}" + (f"; {whole(kept)} holds all epochs that were whole" if kept else ""))
            if folder:
                say("Resume", self._command("fit", folder))
        elif any(name.startswith("test_") for name in self.trainer.callback_metrics):
            self._print_result("test")  # it is computed, but could not be written
        with contextlib.suppress(InputError):  # the disk may be full: that is said already
            self._draw_curves()

    def _check_used(self, datamodule: MNISTDataModule) -> None:
        """Refuse options that config.yaml would record and that would change nothing."""
        useless = {
            "limit_predict_batches": "fit predicts nothing: give it to 'predict'",
            "model_registry": "checkpoints are local files",
            "use_distributed_sampler": "the data shares its images among the processes itself",
        }
        if type(datamodule).train_dataloader is not MNISTDataModule.train_dataloader:
            del useless["use_distributed_sampler"]
        if not datamodule.num_val and type(datamodule).val_dataloader is MNISTDataModule.val_dataloader:
            names = ("limit_val_batches", "val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps")
            useless |= dict.fromkeys(names, "no images are held out: give --data.val_size 10000, too")
        config = self._get(self.config, "trainer")
        if config.gradient_clip_val is None:
            useless["gradient_clip_algorithm"] = "nothing is clipped: give --trainer.gradient_clip_val, too"
        for name, why in useless.items():
            if config[name] not in (None, signature(Trainer).parameters[name].default):
                raise InputError(f"trainer.{name} {config[name]} would change nothing, as {why}")

    def _check_callbacks(self) -> None:
        """Refuse callbacks that watch what is never logged, or that change what config.yaml says."""
        stages = ["train"] + ["val"] * bool(self.datamodule.num_val and self.trainer.limit_val_batches)
        logged = [f"{stage}_{what}" for stage in stages for what in ("loss", "acc")]
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]  # set from outside
        modules = {type(part).__module__.partition(".")[0] for part in (self.model, *callbacks)}
        for callback in callbacks:
            name, monitor = type(callback).__name__, getattr(callback, "monitor", None)
            # A class of the user's own may log what it likes.
            if modules == {"lightning", "mnist_lightning"} and monitor not in (None, "epoch", "step", *logged):
                raise InputError(
                    f"{name} cannot monitor {monitor!r}, which this run does not log: choose one of "
                    f"{', '.join(logged)}" + ", or hold images out with --data.val_size" * (len(stages) == 1)
                )
            if isinstance(callback, (BatchSizeFinder, LearningRateFinder)):
                raise InputError(f"{name} changes what config.yaml says of the run: give it a fixed value instead")

    def _check_limits(self, datamodule: MNISTDataModule) -> None:
        """Refuse what Lightning refuses only when it gets there: when the run has its folder, or is trained."""
        images = {"train": datamodule.num_train, "val": datamodule.num_val, "test": TEST_IMAGES}
        batches = {stage: math.ceil(number / datamodule.batch_size) for stage, number in images.items()}
        for stage, number in batches.items():
            limit = getattr(self.trainer, f"limit_{stage}_batches")
            if isinstance(limit, float) and limit > 0 and number and int(number * limit) == 0:
                raise InputError(f"trainer.limit_{stage}_batches {limit} of {number} batches is less than one batch")
            batches[stage] = int(number * limit) if isinstance(limit, float) else min(number, limit)
        if not batches["train"]:
            raise InputError("trainer.limit_train_batches 0 leaves nothing to train on: give at least 1")
        interval, most = getattr(self.trainer, "val_check_interval", None), batches["train"]
        if isinstance(interval, int) and interval > most:
            raise InputError(f"trainer.val_check_interval must be at most {most}, an epoch's batches, got {interval}")

    def validate(self, model: LightningModule, datamodule: MNISTDataModule, **kwargs: Any) -> None:
        """Evaluate a run on the images it held out."""
        if not datamodule.num_val:
            raise InputError(
                f"{str(self.run_folder)!r} was trained without a validation split (val_size 0): use 'test', or train "
                "with --data.val_size 10000"
            )
        self._evaluate("validate", model, datamodule, kwargs)

    def test(self, model: LightningModule, datamodule: MNISTDataModule, **kwargs: Any) -> None:
        """Evaluate a run on the test images."""
        self._evaluate("test", model, datamodule, kwargs)

    def predict(self, model: LightningModule, datamodule: MNISTDataModule, **kwargs: Any) -> None:
        """Write a run's predictions for the test images."""
        assert self.run_folder is not None
        self._print_checkpoint()
        self.trainer.predict(model, datamodule=datamodule, **kwargs)
        if self.trainer.is_global_zero:
            say("Written", whole(self.run_folder / "predictions.csv"))

    def _evaluate(self, stage: str, model: LightningModule, datamodule: MNISTDataModule, kwargs: Any) -> None:
        assert self.run_folder is not None
        self._print_checkpoint()
        getattr(self.trainer, stage)(model, datamodule=datamodule, **{**kwargs, "verbose": False})
        if self.trainer.is_global_zero:
            self._print_result(stage)
            report = self.report.report if self.report else None
            if report is not None:
                print(report.table(), flush=True)
            self._save_result(stage, self.run_folder)
            if report is not None:
                report.write(self.run_folder)
            more = ", report.json and its pictures" if report is not None else ""
            say("Written", f"{stage}.json{more} in {whole(self.run_folder)}")

    # ----------------------------------------------------------------- output

    def _introduce(self) -> None:
        data, trainer = self.datamodule, self.trainer
        val = f", {len(data.val_dataset):,} held out" if data.val_dataset is not None else ""
        where = "in the package" if data.data_dir is None else f"in {whole(data.data_dir)}"
        name = getattr(data.train_transform, "__name__", type(data.train_transform).__name__)
        transformed = f" (transformed by {name})" if data.train_transform is not None else ""
        train = f"{len(data.train_dataset):,} training images{transformed}"
        say("Data", f"MNIST {where}: {train}{val}, {TEST_IMAGES:,} test images")
        device = trainer.strategy.root_device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
        number = torch.get_num_threads()
        threads = f", {number} thread{'s' * (number > 1)}" if device.type == "cpu" else ""
        several = f", {trainer.world_size} processes" if trainer.world_size > 1 else ""
        say("Device", f"{name}{threads}{several}, precision {trainer.precision}")
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        hidden_size, dropout = self.model.hparams["hidden_size"], self.model.hparams["dropout"]
        dropped = f", dropout {dropout:g}" if dropout else ""
        say("Network", f"784 -> {hidden_size} ReLU{dropped} -> 10, {parameters:,} parameters")
        if self.checkpoint is not None:
            self._print_checkpoint()
            done = self.checkpoint["epoch"] + 1
            if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= done:
                say("Finished", f"all {done} epochs are trained; train on with --trainer.max_epochs {2 * done}")

    def _draw_curves(self) -> None:
        logger = self.run_files.logger if self.run_files else None
        if logger and logger.folder and logger.rows:  # it has its folder once the run has begun
            figures.draw_curves(logger.rows, logger.folder / "curves.png")

    def _command(self, command: str, folder: Path, *more: str) -> str:
        """A command about the run in a folder, to be pasted: in one piece, and with the root that was given."""
        root = self._get(self.config, "trainer").default_root_dir
        newest = newest_run(Path(root or "."), with_checkpoint=command != "fit").samefile(folder)
        checkpoint = None if newest else checkpoint_of(folder)
        words = [self.program, command]
        if checkpoint is not None:
            words.append(f"--ckpt_path {shlex.quote(str(checkpoint))}")
        elif command == "fit":
            words.append("--ckpt_path last")
        if root is not None:
            words.append(f"--trainer.default_root_dir {shlex.quote(str(root))}")
        return whole(" ".join([*words, *more]))

    def _print_checkpoint(self) -> None:
        if self.trainer.is_global_zero:
            say("From", whole(self._get(self.config, "ckpt_path")))

    def _print_result(self, stage: str) -> None:
        metrics = self.trainer.callback_metrics
        prefix = PREFIXES[stage]
        names = [name for name in (f"{prefix}_loss", f"{prefix}_acc") if name in metrics]
        said = [f"{name} {float(metrics[name]):.4f}" for name in names]
        say(stage.capitalize(), "  ".join(said) or "nothing, as limit_test_batches or limit_val_batches wants it")

    def _save_result(self, stage: str, folder: Path) -> Path:
        metrics = {k: float(v) for k, v in self.trainer.callback_metrics.items() if k.startswith(PREFIXES[stage])}
        path = folder / f"{stage}.json"
        write_atomically(path, (json.dumps(metrics, indent=2) + "\n").encode())
        return path


def _schedule(model: LightningModule, own: Callable[[], Any], scheduler: Any) -> Any:
    """The network's own optimizer with a scheduler, as ``configure_optimizers`` returns them."""
    optimizer = own()
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(
            f"--lr_scheduler needs a network with one optimizer, {type(model).__name__} configures "
            f"{type(optimizer).__name__}: leave the flag out, or give --optimizer, too"
        )
    return LightningCLI.configure_optimizers(model, optimizer, instantiate_class(optimizer, scheduler))


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Put back, after a command, what it set for the whole process."""
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    variables = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
