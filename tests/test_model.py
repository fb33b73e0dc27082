"""The network: its start, its loss, its optimizer, what it takes, and who may build on it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.errors import InputError
from mnist_lightning.model import keras_cross_entropy, two_layers


def seeded(seed: int, *args: Any, **kwargs: Any) -> MNISTClassifier:
    torch.manual_seed(seed)
    return MNISTClassifier(*args, **kwargs)


@pytest.mark.parametrize(("hidden_size", "parameters"), [(512, 407_050), (128, 101_770)])
def test_kernels_start_glorot_uniform_and_biases_zero(hidden_size: int, parameters: int) -> None:
    model = MNISTClassifier(hidden_size)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    fans = ((784, hidden_size), (hidden_size, 10))
    for layer, (fan_in, fan_out) in zip((model.network[1], model.network[3]), fans, strict=True):
        assert layer.weight.shape == (fan_out, fan_in)
        assert not layer.bias.any()
        bound = math.sqrt(6 / (fan_in + fan_out))
        weights = layer.weight.detach().numpy()
        assert 0.98 * bound < np.abs(weights).max() <= np.float32(bound)
        assert abs(weights.mean()) < 4 * bound / math.sqrt(3 * weights.size)
        # Uniform: in each tenth of the range a tenth of the weights.
        counts = np.histogram(weights, bins=10, range=(-bound, bound))[0] / weights.size
        assert np.abs(counts - 0.1).max() < 5 * math.sqrt(0.09 / weights.size)


def test_the_start_follows_from_torch_s_seed_and_not_from_dropout() -> None:
    one, same, dropped, other = seeded(1, 8), seeded(1, 8), seeded(1, 8, dropout=0.5), seeded(2, 8)
    for name, tensor in one.state_dict().items():
        assert torch.equal(same.state_dict()[name], tensor)
        assert torch.equal(dropped.state_dict()[name], tensor)
    assert not torch.equal(other.network[1].weight, one.network[1].weight)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_logits_are_those_of_a_dense_relu_layer_and_a_dense_layer(dropout: float) -> None:
    model, images = MNISTClassifier(16, dropout=dropout).eval(), torch.rand(5, 1, 28, 28)
    layers: Any = two_layers(model)
    first, second = layers
    assert layers == (model.network[1], model.network[3])
    for layer in (first, second):
        nn.init.normal_(layer.bias)
    hidden = (images.reshape(5, 784) @ first.weight.T + first.bias).clamp(min=0)
    logits = hidden @ second.weight.T + second.bias
    assert torch.allclose(model(images), logits, atol=1e-5)
    assert torch.equal(model(images), model(images.flatten(1)))


def test_a_network_of_another_kind_has_no_two_layers() -> None:
    model = MNISTClassifier(8, image_shape=(3, 4, 4), num_classes=2)
    assert two_layers(model) is not None
    assert two_layers(model.network) is None
    model.network.insert(3, nn.Linear(8, 8))
    assert two_layers(model) is None


def test_dropout_leaves_out_hidden_units_in_training_alone() -> None:
    model, images = seeded(0, 4_000, dropout=0.25), torch.rand(1, 784)
    plain = MNISTClassifier(4_000)
    plain.load_state_dict(model.state_dict())  # the layers have the same names
    assert torch.equal(model.eval()(images), plain(images))
    hidden, dropped = plain.network[:3](images), model.train().network[:3](images)
    active = hidden > 0
    assert (dropped[active] == 0).float().mean().item() == pytest.approx(0.25, abs=0.05)
    kept = active & (dropped > 0)
    assert torch.allclose(dropped[kept], hidden[kept] / 0.75)
    assert not torch.equal(model(images), model(images))


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_the_optimizer_is_keras_2_2_4_s_rmsprop(weight_decay: float) -> None:
    model = MNISTClassifier(8, weight_decay=weight_decay)
    optimizer = model.configure_optimizers()
    wanted = {"lr": 1e-3, "alpha": 0.9, "eps": 1e-7, "momentum": 0, "centered": False, "weight_decay": weight_decay}
    assert {name: optimizer.defaults[name] for name in wanted} == wanted
    assert MNISTClassifier(learning_rate=0.5).configure_optimizers().defaults["lr"] == 0.5
    with torch.no_grad():
        model.network[3].bias.fill_(2.0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for parameter, weights in zip(model.parameters(), before, strict=True):
        gradient = 1 + weight_decay * weights  # of biases, too
        assert torch.allclose(parameter, weights - 1e-3 * gradient / ((0.1 * gradient**2).sqrt() + 1e-7))


@pytest.mark.parametrize("scale", [1, 10, 100])
def test_the_keras_loss_is_that_of_clipped_probabilities(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(64, 10, generator=generator, dtype=torch.float64)
    targets = torch.randint(10, (64,), generator=generator)
    p = np.exp(logits.numpy() - logits.numpy().max(1, keepdims=True))  # as Keras 2.2.4 has it, in numpy
    p /= p.sum(1, keepdims=True)
    p = np.clip(p / p.sum(1, keepdims=True), 1e-7, 1 - 1e-7)
    wanted = -np.log(p[np.arange(64), targets]).mean()
    assert keras_cross_entropy(logits, targets).item() == pytest.approx(wanted, abs=1e-13)


def test_the_keras_loss_has_no_gradient_where_it_is_clipped() -> None:
    # The second is right beyond 1 - 1e-7, the third is wrong beyond 1e-7.
    logits = torch.tensor([[1.0, 2, 0.5], [20, 0, 0], [30, 0, 0]], dtype=torch.float64, requires_grad=True)
    loss = keras_cross_entropy(logits, torch.tensor([1, 0, 2]))
    assert loss.item() != pytest.approx(F.cross_entropy(logits, torch.tensor([1, 0, 2])).item(), abs=1)
    loss.backward()
    assert not logits.grad[1:].any()
    expected = (logits[0].softmax(0) - torch.tensor([0, 1, 0])) / 3
    assert logits.grad[0].tolist() == pytest.approx(expected.tolist(), abs=1e-15)


@pytest.mark.parametrize(("loss", "value", "near"), [("keras", 16.118, 1e-3), ("cross_entropy", 100, 5)])
def test_the_chosen_loss_is_trained_and_logged(loss: str, value: float, near: float, trainer: Callable) -> None:
    model, losses = MNISTClassifier(8, loss=loss), []
    model.on_train_batch_end = lambda outputs, *args: losses.append(outputs["loss"].item())
    with torch.no_grad():
        model.network[3].bias[0] = 100  # sure of itself, and wrong: clipped at -log(1e-7) = 16.1
    fit = trainer()
    fit.fit(model, DataLoader(TensorDataset(torch.rand(32, 784), torch.full((32,), 3)), 32))
    assert losses == [pytest.approx(value, abs=near)]
    assert fit.callback_metrics["train_loss"].item() == pytest.approx(losses[0])


def test_prediction_takes_images_with_or_without_targets(trainer: Callable) -> None:
    model, images = MNISTClassifier(8), torch.rand(6, 784)
    wanted = model(images).softmax(1)
    for batch in (images, [images, torch.zeros(6)], (images,)):
        assert torch.equal(model.predict_step(batch, 0), wanted)
    for dataset in (images, TensorDataset(images), TensorDataset(images, torch.zeros(6))):
        assert torch.allclose(torch.cat(trainer().predict(model, DataLoader(dataset, 4))), wanted)


@pytest.mark.parametrize(
    ("name", "values", "what"),
    [
        ("hidden_size", (0, -1), "at least 1"),
        ("learning_rate", (0, -1, math.nan), "above 0"),
        ("loss", ("mse", "", None), "one of cross_entropy, keras"),
        ("dropout", (1, 1.0, -0.1, math.nan), "from 0 to below 1"),
        ("weight_decay", (-1e-9, math.nan), "0 or above"),
    ],
)
def test_an_argument_out_of_range_is_refused_by_name_and_value(name: str, values: Any, what: str) -> None:
    for value in values:
        with pytest.raises(InputError, match=f"^{name} must be {what}, got {value!r}$"):
            MNISTClassifier(**{name: value})


@pytest.mark.parametrize(
    "number", [lambda value: value, np.float32, np.float64], ids=["Python's", "float32", "float64"]
)
def test_a_checkpoint_loads_weights_only(number: Callable, trainer: Callable, tmp_path: Path) -> None:
    model = MNISTClassifier(np.int64(16), number(0.25), "keras", number(0.5), number(0.125))
    wanted = {"hidden_size": 16, "learning_rate": 0.25, "loss": "keras", "dropout": 0.5, "weight_decay": 0.125}
    wanted |= {"image_shape": [1, 28, 28], "num_classes": 10}
    assert dict(model.hparams) == wanted
    assert [type(value) for value in model.hparams.values()] == [type(value) for value in wanted.values()]
    fit = trainer(limit_train_batches=2)
    fit.fit(model, datamodule=MNISTDataModule())
    fit.save_checkpoint(tmp_path / "a.ckpt")
    again = MNISTClassifier.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert dict(again.hparams) == wanted
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert all(name.startswith("network.") for name in model.state_dict())


def test_a_float64_checkpoint_keeps_every_bit(trainer: Callable, tmp_path: Path) -> None:
    def fit(epochs: int, ckpt_path: Path | None = None) -> MNISTClassifier:
        model, made = seeded(0, 16), trainer(precision="64-true", max_epochs=epochs)
        made.fit(model, datamodule=MNISTDataModule(train_size=1000), ckpt_path=ckpt_path)
        made.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return model

    fit(1)
    resumed, whole = fit(2, tmp_path / "1.ckpt"), fit(2)
    for name, tensor in whole.state_dict().items():
        assert tensor.dtype == torch.float64
        assert torch.equal(resumed.state_dict()[name], tensor)


@pytest.mark.parametrize("loss", ["cross_entropy", "keras"])
@pytest.mark.parametrize(("precision", "dtype"), [("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16)])
def test_it_trains_in_half_precision(precision: str, dtype: torch.dtype, loss: str, trainer: Callable) -> None:
    fit, model = trainer(precision=precision, limit_train_batches=60), MNISTClassifier(64, loss=loss)
    fit.fit(model, datamodule=MNISTDataModule())
    assert model.network[1].weight.dtype == dtype
    assert 0.6 < fit.callback_metrics["train_acc"].item() < 1
    assert 0 < fit.callback_metrics["train_loss"].item() < 1.5
