"""A stranger's use of the network: callbacks, losses and steps of one's own, several loaders, what Lightning adds."""

import copy
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LambdaCallback,
    ModelCheckpoint,
    ModelSummary,
    StochasticWeightAveraging,
)
from torch import Tensor, nn

from mnist_lightning import MNISTClassifier, MNISTDataModule

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),  # no images held out
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]


def test_callbacks_have_the_metrics_of_the_epoch_in_every_hook(trainer: Callable) -> None:
    read: list[tuple[str, dict[str, float]]] = []

    def note(hook: str) -> Callable:
        return lambda made, _: read.append(
            (hook, {name: float(value) for name, value in made.callback_metrics.items()})
        )

    hooks = {f"on_{hook}_epoch_end": note(hook) for hook in ("train", "validation", "test")}
    model, data = MNISTClassifier(8), MNISTDataModule(val_size=500)
    made = trainer(max_epochs=2, limit_train_batches=3, num_sanity_val_steps=0, callbacks=[LambdaCallback(**hooks)])
    made.fit(model, data)
    assert made.progress_bar_metrics.keys() == {"val_loss", "val_acc"}
    tested = made.test(model, data, verbose=False)
    assert [hook for hook, _ in read] == ["validation", "train", "validation", "train", "test"]
    first, last = read[1][1], read[3][1]
    assert first.keys() == {"train_loss", "train_acc", "val_loss", "val_acc"}
    assert all(first[name] != last[name] for name in ("train_loss", "val_loss"))
    assert read[2][1]["val_loss"] == last["val_loss"]
    assert read[4][1] == tested[0]


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="with torch 2.6, Lightning saves code for averaging")
def test_lightning_s_own_callbacks_work(trainer: Callable, tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, "{epoch}-{val_acc:.2f}", monitor="val_loss")
    stop = EarlyStopping("val_loss", patience=0, min_delta=10)
    averaging = StochasticWeightAveraging(1e-3, swa_epoch_start=1)
    data = MNISTDataModule(train_size=300, val_size=100)
    made = trainer(
        max_epochs=5, callbacks=[best, stop, averaging], enable_checkpointing=True, accumulate_grad_batches=2
    )
    made.fit(MNISTClassifier(32), data)
    assert (made.current_epoch, made.global_step) == (2, 4)  # stopped after two epochs of two steps
    (metrics,) = made.validate(datamodule=data, ckpt_path="best", verbose=False)
    assert metrics["val_loss"] == pytest.approx(best.best_model_score.item())
    assert f"-val_acc={metrics['val_acc']:.2f}" in best.best_model_path


def test_a_loss_that_is_not_finite_is_left_to_the_user(trainer: Callable) -> None:
    stop = EarlyStopping("train_loss", check_finite=True)
    made = trainer(max_epochs=3, callbacks=[stop])
    made.fit(MNISTClassifier(8, learning_rate=1e30), MNISTDataModule(train_size=300))
    assert made.current_epoch == stop.stopped_epoch + 1 == 1
    assert not made.callback_metrics["train_loss"].isfinite()


@pytest.mark.filterwarnings("ignore:Precision bf16-mixed is not supported by the model summary")
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true", "bf16-mixed"])
def test_a_summary_needs_no_example_input_and_takes_the_users(precision: str, trainer: Callable) -> None:
    model, summary = MNISTClassifier(8), ModelSummary()
    made = trainer(precision=precision, callbacks=[summary], limit_train_batches=1, enable_model_summary=True)
    made.fit(model, MNISTDataModule())
    model.example_input_array = torch.zeros(3, 784, dtype=model.dtype)
    made.fit(model, MNISTDataModule())
    assert summary._summary(made, model).out_sizes[0] == [3, 10]


def test_a_loss_of_ones_own_is_what_is_trained_and_logged(trainer: Callable) -> None:
    class Own(MNISTClassifier):
        def compute_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
            smooth = 0.9 * F.one_hot(targets, 10).double() + 0.01
            return F.cross_entropy(logits, smooth)  # a loss in float64

    model, data, made = Own(8), MNISTDataModule(train_size=128), trainer()
    before = copy.deepcopy(model)
    made.fit(model, data)
    images, targets = data.sample(128)
    loss = F.cross_entropy(before(images), targets, label_smoothing=0.1)
    assert made.callback_metrics["train_loss"].item() == pytest.approx(loss.item(), abs=1e-6)
    assert not torch.equal(model.network[1].weight, before.network[1].weight)


def test_what_an_overridden_step_does_not_record_is_not_logged(trainer: Callable) -> None:
    class Own(MNISTClassifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("mine", F.cross_entropy(self(batch[0]), batch[1]))

        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
            return self(batch[0])

    model, data, made = Own(8), MNISTDataModule(val_size=500), trainer(limit_train_batches=3)
    made.fit(model, data)
    assert made.callback_metrics.keys() == {"mine"}
    assert made.test(model, data, verbose=False) == [{}]


def test_a_network_of_ones_own_takes_the_place_of_the_tutorial_s(trainer: Callable, tmp_path: Path) -> None:
    class Own(MNISTClassifier):
        def __init__(self, hidden_size: int = 8, activation: type[nn.Module] = nn.ReLU) -> None:
            super().__init__(hidden_size)
            self.save_hyperparameters()
            self.network = nn.Sequential(nn.Flatten(), nn.Linear(784, hidden_size), activation(), nn.LazyLinear(10))

    model, made = Own(4, nn.GELU), trainer(limit_train_batches=1)
    model(torch.zeros(1, 784))
    made.fit(model, MNISTDataModule(train_size=20))
    made.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(Exception, match="GELU was not an allowed global"):
        Own.load_from_checkpoint(tmp_path / "a.ckpt", activation=nn.GELU)
    with torch.serialization.safe_globals([nn.GELU]):
        again = Own.load_from_checkpoint(tmp_path / "a.ckpt", activation=nn.GELU)
    images = torch.rand(5, 1, 28, 28)
    assert torch.equal(again(images), model(images))


@pytest.mark.parametrize("own", [False, True], ids=["as it is", "with a step of its own"])
def test_several_loaders_are_logged_one_by_one(own: bool, trainer: Callable) -> None:
    class Own(MNISTClassifier):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().validation_step(batch, batch_idx)

    class Twice(MNISTDataModule):
        def val_dataloader(self) -> Any:
            return [super().val_dataloader(), self.test_dataloader()]

        def setup(self, stage: str | None = None) -> None:
            super().setup()

    model, data = Own(8) if own else MNISTClassifier(8), Twice(train_size=300, val_size=500)
    made = trainer(max_epochs=2)
    made.fit(model, data)
    assert len(model.state_dict()) == 4
    loaders = [data.val_dataloader()[0], data.test_dataloader()]
    together = trainer().validate(model, loaders, verbose=False)
    tested = trainer().test(model, loaders, verbose=False)
    for index, loader in enumerate(loaders):
        (alone,) = trainer().validate(model, loader, verbose=False)
        suffix = f"/dataloader_idx_{index}"
        assert together[index] == {f"{name}{suffix}": value for name, value in alone.items()}
        assert tested[index][f"test_loss{suffix}"] == alone["val_loss"]
        assert made.callback_metrics[f"val_acc{suffix}"].item() == alone["val_acc"]
    probabilities = trainer().predict(model, loaders)
    assert [sum(map(len, parts)) for parts in probabilities] == [500, 10_000]


def test_memory_does_not_grow_with_the_steps_of_an_epoch(trainer: Callable) -> None:
    tensors: list[int] = []

    class Sizes(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if args[-1] in (10, 200):
                gc.collect()
                tensors.append(sum(type(part) is Tensor for part in gc.get_objects()))

    trainer(limit_train_batches=202, callbacks=[Sizes()]).fit(MNISTClassifier(8), MNISTDataModule(batch_size=1))
    assert abs(tensors[1] - tensors[0]) < 20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_torch_compile_compiles_a_step_once(trainer: Callable) -> None:
    def graphs(batches: int) -> int:
        torch.compiler.reset()
        compiled: list[Any] = []

        def backend(graph: Any, inputs: Any) -> Any:
            compiled.append(graph)
            return graph

        network: Any = torch.compile(MNISTClassifier(8), backend=backend)
        trainer(limit_train_batches=batches, max_epochs=2).fit(network, MNISTDataModule(val_size=500))
        return len(compiled)

    assert graphs(5) == graphs(20)
