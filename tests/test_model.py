"""The network: its start, its loss, its optimizer, what it takes, and who may build on it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.errors import InputError
from mnist_lightning.model import keras_cross_entropy

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]


class Losses(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        self.values.append(outputs["loss"].item())


# ------------------------------------------------------------------ network


def test_the_network_has_407050_parameters() -> None:
    assert sum(parameter.numel() for parameter in MNISTClassifier().parameters()) == 407_050


@pytest.mark.parametrize("hidden_size", [512, 128])
def test_kernels_start_glorot_uniform_and_biases_zero(hidden_size: int) -> None:
    model = MNISTClassifier(hidden_size)
    for layer, (fan_in, fan_out) in zip(
        (model.network[1], model.network[3]), ((784, hidden_size), (hidden_size, 10)), strict=True
    ):
        assert layer.weight.shape == (fan_out, fan_in)
        assert not layer.bias.any()
        bound = math.sqrt(6 / (fan_in + fan_out))
        weights = layer.weight.detach().numpy()
        assert 0.98 * bound < np.abs(weights).max() <= np.float32(bound)
        assert abs(weights.mean()) < 4 * bound / math.sqrt(3 * weights.size)
        # Uniform: in each tenth of the range a tenth of the weights.
        counts = np.histogram(weights, bins=10, range=(-bound, bound))[0] / weights.size
        assert np.abs(counts - 0.1).max() < 5 * math.sqrt(0.09 / weights.size)


def test_the_start_follows_from_torch_s_seed() -> None:
    def start(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return MNISTClassifier().network[1].weight

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))


def test_the_optimizer_is_keras_2_2_4_s_rmsprop() -> None:
    model = MNISTClassifier()
    optimizer = model.configure_optimizers()
    assert isinstance(optimizer, torch.optim.RMSprop)
    wanted = {"lr": 1e-3, "alpha": 0.9, "eps": 1e-7, "momentum": 0, "centered": False, "weight_decay": 0}
    assert {name: optimizer.defaults[name] for name in wanted} == wanted
    (group,) = optimizer.param_groups
    assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in model.parameters()]
    assert MNISTClassifier(learning_rate=0.5).configure_optimizers().defaults["lr"] == 0.5


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_it_says_which_layers_see_the_pixels_and_give_the_logits(dropout: float) -> None:
    model = MNISTClassifier(16, dropout=dropout)
    images = torch.rand(5, 784)
    hidden = F.relu(F.linear(images, model.hidden_layer.weight, model.hidden_layer.bias))
    assert torch.equal(model.eval()(images), model.output_layer(hidden))


def test_logits_are_those_of_a_dense_relu_layer_and_a_dense_layer() -> None:
    model, images = MNISTClassifier(16), torch.rand(5, 1, 28, 28)
    first, second = model.network[1], model.network[3]
    nn.init.normal_(first.bias)
    nn.init.normal_(second.bias)
    hidden = np.maximum(
        images.reshape(5, 784).numpy() @ first.weight.detach().numpy().T + first.bias.detach().numpy(), 0
    )
    logits = hidden @ second.weight.detach().numpy().T + second.bias.detach().numpy()
    assert np.allclose(model(images).detach(), logits, atol=1e-5)


def test_dropout_leaves_out_hidden_units_in_training_alone() -> None:
    torch.manual_seed(0)
    model, images = MNISTClassifier(4_000, dropout=0.25), torch.rand(1, 784)
    plain = MNISTClassifier(4_000)
    plain.load_state_dict(model.state_dict())  # the layers have the same names
    assert torch.equal(model.eval()(images), plain(images))
    hidden, dropped = plain.network[:3](images), model.train().network[:3](images)
    active = hidden > 0
    assert (dropped[active] == 0).float().mean().item() == pytest.approx(0.25, abs=0.05)
    kept = active & (dropped > 0)
    assert torch.allclose(dropped[kept], hidden[kept] / 0.75)
    assert not torch.equal(model(images), model(images))


def test_dropout_leaves_the_start_as_it_is() -> None:
    def start(dropout: float) -> MNISTClassifier:
        torch.manual_seed(1)
        return MNISTClassifier(8, dropout=dropout)

    for one, other in zip(start(0.0).parameters(), start(0.5).parameters(), strict=True):
        assert torch.equal(one, other)


def test_weight_decay_is_added_to_the_gradient_of_every_parameter() -> None:
    model = MNISTClassifier(8, weight_decay=0.01)
    optimizer = model.configure_optimizers()
    with torch.no_grad():
        model.network[3].bias.fill_(2.0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer.step()
    for parameter, weights in zip(model.parameters(), before, strict=True):
        gradient = 1 + 0.01 * weights
        wanted = weights - 1e-3 * gradient / ((0.1 * gradient**2).sqrt() + 1e-7)
        assert torch.allclose(optimizer.state[parameter]["square_avg"], 0.1 * gradient**2)
        assert torch.allclose(parameter, wanted)


def test_images_may_be_flat_or_square() -> None:
    model, images = MNISTClassifier(16), torch.rand(5, 1, 28, 28)
    assert model(images).shape == (5, 10)
    assert torch.equal(model(images), model(images.flatten(1)))


@pytest.mark.parametrize("shape", [(5, 28, 28), (5, 3, 28, 28), (5, 783), (784,), (5, 1, 28, 27), (5, 1, 784), ()])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"must have shape \(N, 1, 28, 28\) or \(N, 784\), got \(") as caught:
        MNISTClassifier(8)(torch.rand(shape))
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_images_that_are_not_floats_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match=rf"must be floats in \[0, 1\] \(uint8 / 255\), got {dtype}"):
        MNISTClassifier(8)(torch.zeros(2, 784, dtype=dtype))


# --------------------------------------------------------------------- loss


def keras_loss(logits: np.ndarray, targets: np.ndarray) -> float:
    """As Keras 2.2.4 has it, in numpy."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p /= p.sum(1, keepdims=True)
    p = np.clip(p, 1e-7, 1 - 1e-7)
    return float(np.mean([-math.log(row[target]) for row, target in zip(p, targets, strict=True)]))


def test_the_keras_loss_is_clipped_and_has_no_gradient_there() -> None:
    # The second is right beyond 1 - 1e-7, the third is wrong beyond 1e-7.
    logits = torch.tensor(
        [[1.0, 2.0, 0.5], [20.0, 0.0, 0.0], [30.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True
    )
    targets = torch.tensor([1, 0, 2])
    loss = keras_cross_entropy(logits, targets)
    assert loss.item() == pytest.approx(keras_loss(logits.detach().numpy(), targets.numpy()), abs=1e-15)
    assert loss.item() != pytest.approx(F.cross_entropy(logits, targets).item(), abs=1)
    loss.backward()
    assert not logits.grad[1:].any()
    expected = (logits[0].softmax(0) - F.one_hot(targets[0], 3)) / 3
    assert logits.grad[0].tolist() == pytest.approx(expected.tolist(), abs=1e-15)


@pytest.mark.parametrize("scale", [1, 10, 100])
def test_the_keras_loss_agrees_with_numpy(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(64, 10, generator=generator, dtype=torch.float64)
    targets = torch.randint(10, (64,), generator=generator)
    assert keras_cross_entropy(logits, targets).item() == pytest.approx(
        keras_loss(logits.numpy(), targets.numpy()), abs=1e-13
    )


@pytest.mark.parametrize("loss", ["cross_entropy", "keras"])
def test_the_chosen_loss_is_trained_and_logged(loss: str, trainer: Callable) -> None:
    model, losses = MNISTClassifier(8, loss=loss), Losses()
    with torch.no_grad():
        model.network[3].bias[0] = 100  # sure of itself, and wrong: clipped at -log(1e-7) = 16.1
    images, targets = torch.rand(32, 784), torch.full((32,), 3)
    fit = trainer(callbacks=[losses])
    fit.fit(model, DataLoader(TensorDataset(images, targets), 32))
    wanted = {"keras": 16.118, "cross_entropy": 100}[loss]
    assert losses.values == [pytest.approx(wanted, abs=5 if wanted == 100 else 1e-3)]
    assert fit.callback_metrics["train_loss"].item() == pytest.approx(losses.values[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_one_hot_targets_are_refused_with_a_way_out(stage: str, dtype: torch.dtype, trainer: Callable) -> None:
    targets = F.one_hot(torch.arange(10), 10).to(dtype)
    loader = DataLoader(TensorDataset(torch.rand(10, 784), targets), 10)
    with pytest.raises(InputError, match=r"got torch\..* of shape \(10, 10\); .*targets\.argmax\(dim=1\)"):
        getattr(trainer(), stage)(MNISTClassifier(8), loader)


# --------------------------------------------------------------- prediction


def test_predictions_are_softmax_probabilities_of_the_test_images(trainer: Callable) -> None:
    model, data = MNISTClassifier(16), MNISTDataModule(batch_size=3000)
    probabilities = torch.cat(trainer().predict(model, datamodule=data))
    assert probabilities.shape == (10_000, 10)
    with torch.no_grad():
        logits = model(data.test_dataset.images.float() / 255)
    assert torch.allclose(probabilities, logits.exp() / logits.exp().sum(1, keepdim=True), atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "bf16-mixed"])
def test_half_precision_predicts_probabilities_in_float32(precision: str, trainer: Callable) -> None:
    torch.manual_seed(0)
    model, data = MNISTClassifier(16), MNISTDataModule(batch_size=3000)
    predictor = trainer(precision=precision)
    probabilities = torch.cat(predictor.predict(model, datamodule=data))
    with torch.no_grad(), predictor.precision_plugin.forward_context():
        logits = torch.cat([model(images) for images, _ in data.predict_dataloader()]).double()
    assert probabilities.dtype == torch.float32
    assert (probabilities.double().sum(1) - 1).abs().max() < 1e-6
    assert torch.allclose(probabilities.double(), logits.softmax(1), atol=1e-6)


def test_prediction_takes_images_with_or_without_targets(trainer: Callable) -> None:
    model, images = MNISTClassifier(8), torch.rand(6, 784)
    wanted = model(images).softmax(1)
    assert torch.equal(model.predict_step(images, 0), wanted)
    assert torch.equal(model.predict_step([images, torch.zeros(6)], 0), wanted)
    for dataset in (images, TensorDataset(images), TensorDataset(images, torch.zeros(6))):
        assert torch.allclose(torch.cat(trainer().predict(model, DataLoader(dataset, 4))), wanted)


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "arguments",
    [
        *({"hidden_size": value} for value in (0, -1, True, 2.5, 10**9, "512", None)),
        *({"learning_rate": value} for value in (0, -1, math.nan, math.inf, True, "x", None)),
        *({"loss": value} for value in ("mse", "", None, ["keras"])),
        *({"dropout": value} for value in (1, 1.0, -0.1, math.nan, True, "0.5", None)),
        *({"weight_decay": value} for value in (-1e-9, math.nan, math.inf, False, "x", None)),
    ],
    ids=repr,
)
def test_an_argument_out_of_range_is_refused_by_name_and_value(arguments: dict[str, Any]) -> None:
    ((name, value),) = arguments.items()
    with pytest.raises(InputError, match=f"^{name} must be") as caught:
        MNISTClassifier(**arguments)
    assert str(value) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_hyper_parameters_are_kept() -> None:
    wanted = {"hidden_size": 16, "learning_rate": 0.5, "loss": "keras", "dropout": 0.25, "weight_decay": 0.01}
    shape = {"image_shape": [1, 28, 28], "num_classes": 10}
    assert dict(MNISTClassifier(**wanted).hparams) == {**wanted, **shape}
    numpys = MNISTClassifier(np.int64(16), np.float32(0.5), "keras", np.float64(0.25), np.int8(0)).hparams
    assert dict(numpys) == {**wanted, "weight_decay": 0, **shape}
    assert [type(value) for value in numpys.values()] == [int, float, str, float, float, list, int]
    plain = {"hidden_size": 512, "learning_rate": 1e-3, "loss": "cross_entropy", "dropout": 0, "weight_decay": 0}
    assert dict(MNISTClassifier().hparams) == {**plain, **shape}


# -------------------------------------------------------------- other users


@pytest.mark.parametrize(("whole", "real"), [(int, float), (np.int64, np.float32)], ids=["Python's", "numpy's"])
def test_a_checkpoint_loads_weights_only(whole: Callable, real: Callable, trainer: Callable, tmp_path: Path) -> None:
    model = MNISTClassifier(whole(16), real(2e-3), "keras", real(0.5), real(1e-4))
    fit = trainer(limit_train_batches=2)
    fit.fit(model, datamodule=MNISTDataModule())
    fit.save_checkpoint(tmp_path / "a.ckpt")
    again = MNISTClassifier.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert dict(again.hparams) == dict(model.hparams)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert all(name.startswith("network.") for name in model.state_dict())


def test_a_float64_checkpoint_keeps_every_bit(trainer: Callable, tmp_path: Path) -> None:
    def fit(epochs: int, ckpt_path: Path | None = None) -> MNISTClassifier:
        torch.manual_seed(0)
        model, made = MNISTClassifier(16), trainer(precision="64-true", max_epochs=epochs)
        made.fit(model, datamodule=MNISTDataModule(train_size=1000), ckpt_path=ckpt_path)
        made.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return model

    fit(1)
    resumed, whole = fit(2, tmp_path / "1.ckpt"), fit(2)
    for name, tensor in whole.state_dict().items():
        assert tensor.dtype == torch.float64
        assert torch.equal(resumed.state_dict()[name], tensor)
    tested = [
        trainer(precision="64-true").test(model, datamodule=MNISTDataModule(), verbose=False, ckpt_path=path)
        for model, path in ((whole, None), (MNISTClassifier(16), tmp_path / "2.ckpt"))
    ]
    assert tested[0] == tested[1]


class WithDropout(MNISTClassifier):
    """A user's own network on this one."""

    def __init__(self, dropout: float = 0.5, hidden_size: int = 32, **kwargs: Any) -> None:
        super().__init__(hidden_size, **kwargs)
        self.save_hyperparameters()
        self.network.insert(3, nn.Dropout(dropout))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["learning_rate"])


def test_it_serves_as_a_base_class(trainer: Callable, tmp_path: Path) -> None:
    model = WithDropout(dropout=0.25, hidden_size=24, learning_rate=0.01)
    data = MNISTDataModule(val_size=59_000)
    fit = trainer(max_epochs=2, limit_val_batches=4)
    fit.fit(model, datamodule=data)
    assert fit.callback_metrics["val_acc"] > 0.5
    fit.save_checkpoint(tmp_path / "a.ckpt")
    again = WithDropout.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert dict(again.hparams) == dict(model.hparams)
    assert again.hparams["dropout"] == again.network[3].p == 0.25
    assert (again.hparams["hidden_size"], again.hparams["learning_rate"]) == (24, 0.01)
    images = torch.rand(4, 784)
    assert torch.equal(again.eval()(images), model.eval()(images))


def test_it_trains_on_tensors_of_the_users_own(trainer: Callable) -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(400) % 10
    images = torch.rand(10, 784, generator=generator)[targets] + 0.1 * torch.randn(400, 784, generator=generator)
    model, loader = MNISTClassifier(64), DataLoader(TensorDataset(images, targets), 32)
    fit = trainer(max_epochs=3)
    fit.fit(model, loader, DataLoader(TensorDataset(images, targets), 100))
    assert fit.callback_metrics["val_acc"] > 0.9
    (tested,) = trainer().test(model, loader, verbose=False)
    assert tested["test_acc"] == pytest.approx(fit.callback_metrics["val_acc"].item())


@pytest.mark.parametrize("loss", ["cross_entropy", "keras"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_it_trains_in_half_precision(precision: str, loss: str, trainer: Callable) -> None:
    fit = trainer(precision=precision, limit_train_batches=60)
    model = MNISTClassifier(64, loss=loss)
    fit.fit(model, datamodule=MNISTDataModule())
    assert model.network[1].weight.dtype == (torch.float32 if precision == "bf16-mixed" else torch.bfloat16)
    assert 0.6 < fit.callback_metrics["train_acc"].item() < 1
    assert 0 < fit.callback_metrics["train_loss"].item() < 1.5
