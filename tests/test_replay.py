"""The training itself, held step by step against Keras 2.2.4, recorded and written down again in numpy."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mnist_lightning.errors import InputError

RECORDED = Path(__file__).parent / "keras-2.2.4-float64-seed-2019.json"


@pytest.fixture
def recorded() -> dict[str, Any]:
    """Keras 2.2.4's own run, in float64."""
    return json.loads(RECORDED.read_text())


@pytest.mark.slow
def test_all_steps_of_the_recorded_run_are_replayed(script: Callable, recorded: dict[str, Any]) -> None:
    deviations = script("replay").replay(recorded)
    assert [len(epoch) for epoch in deviations.steps] == [469] * 5
    assert max(map(max, deviations.steps)) <= 1e-12
    assert max(deviations.test_loss) <= 1e-7
    assert deviations.test_correct == [0] * 5
    assert deviations.kept("keras")


@pytest.mark.slow
def test_on_logits_the_first_epoch_is_the_recorded_one(script: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    assert script("replay").main([str(RECORDED), "--loss", "cross_entropy", "--epochs", "1"]) == 0
    printed = capsys.readouterr().out
    assert "largest deviation of 469 step losses" in printed
    assert "steps of the first epoch within 1e-07: yes" in printed


def keras_run(seed: int, batch_size: int, read: Callable[[str], tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """One epoch of the tutorial's training as Keras 2.2.4 computes it, in numpy, in float64."""
    images, digits = read("train")
    one_hot = np.eye(10)[digits]
    r = np.random.RandomState(seed)
    w1 = r.uniform(-math.sqrt(6 / (784 + 512)), math.sqrt(6 / (784 + 512)), (784, 512))
    w2 = r.uniform(-math.sqrt(6 / (512 + 10)), math.sqrt(6 / (512 + 10)), (512, 10))
    parameters = [w1, np.zeros(512), w2, np.zeros(10)]
    averages = [np.zeros_like(parameter) for parameter in parameters]

    def forward(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        hidden = np.maximum(x @ parameters[0] + parameters[1], 0)
        logits = hidden @ parameters[2] + parameters[3]
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p /= p.sum(1, keepdims=True)
        loss = -np.log(np.clip(p, 1e-7, 1 - 1e-7)[y > 0]).mean()
        return hidden, p, p[y > 0], float(loss)

    losses = []
    order = r.permutation(60_000)
    for start in range(0, 60_000, batch_size):
        index = order[start : start + batch_size]
        x, y = images[index].reshape(-1, 784) / 255, one_hot[index]
        hidden, p, p_target, loss = forward(x, y)
        losses.append(loss)
        unclipped = (p_target > 1e-7) & (p_target < 1 - 1e-7)
        to_logits = (p - y) * unclipped[:, None] / len(index)
        to_hidden = (to_logits @ parameters[2].T) * (hidden > 0)
        gradients = [x.T @ to_hidden, to_hidden.sum(0), hidden.T @ to_logits, to_logits.sum(0)]
        for parameter, average, gradient in zip(parameters, averages, gradients, strict=True):
            average *= 0.9
            average += 0.1 * gradient**2
            parameter -= 0.001 * gradient / (np.sqrt(average) + 1e-7)
    images, digits = read("t10k")
    _, p, _, test_loss = forward(images.reshape(-1, 784) / 255, np.eye(10)[digits])
    test = [[test_loss, float((p.argmax(1) == digits).mean())]]
    return {
        "seed": seed,
        "epochs": 1,
        "batch_size": batch_size,
        "step_loss": losses,
        "test_loss_and_acc_after_epoch": test,
    }


@pytest.mark.slow
def test_another_seed_and_batch_size_train_as_keras_in_numpy(script: Callable, mnist: Callable) -> None:
    reference = keras_run(11, 700, mnist)
    assert len(reference["step_loss"]) == 86  # the last with 500 images
    assert reference["step_loss"][-1] < 0.5 < 2 < reference["step_loss"][0]
    deviations = script("replay").replay(reference)
    assert [len(epoch) for epoch in deviations.steps] == [86]
    assert max(deviations.steps[0]) <= 1e-12
    assert max(deviations.test_loss) <= 1e-12
    assert deviations.test_correct == [0]


@pytest.mark.parametrize(
    ("steps", "test_loss", "test_correct", "kept"),
    [
        ([[1e-13], [9e-13]], [9e-8, 0], [0, 0], {"keras", "cross_entropy"}),
        ([[1e-13], [2e-12]], [0, 0], [0, 0], {"cross_entropy"}),
        ([[9e-8], [1.0]], [1.0, 1.0], [0, 9], {"cross_entropy"}),
        ([[1e-13, 2e-7], [0]], [0, 0], [0, 0], set()),
        ([[0], [0]], [0, 2e-7], [0, 0], {"cross_entropy"}),
        ([[0], [0]], [0, 0], [0, -1], {"cross_entropy"}),
        ([[0, math.nan], [0]], [0, 0], [0, 0], set()),
    ],
)
def test_a_deviation_above_the_bound_is_an_exit_code_of_one(
    steps: list[list[float]],
    test_loss: list[float],
    test_correct: list[int],
    kept: set[str],
    script: Callable,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    replay = script("replay")
    monkeypatch.setattr(replay, "replay", lambda *_: replay.Deviations(steps, test_loss, test_correct))
    for loss in ("keras", "cross_entropy"):
        assert replay.main([str(RECORDED), "--loss", loss]) == int(loss not in kept)
        assert capsys.readouterr().out.endswith(": yes\n" if loss in kept else ": NO\n")


@pytest.mark.parametrize(("deviation", "kept"), [(9e-10, True), (2e-9, False)])
def test_a_gpu_which_adds_up_in_another_order_has_a_bound_of_its_own(
    deviation: float, kept: bool, script: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replay = script("replay")
    monkeypatch.setattr(replay, "replay", lambda *_: replay.Deviations([[deviation]] * 2, [0, 0], [0, 0]))
    assert replay.main([str(RECORDED), "--accelerator", "gpu"]) == int(not kept)
    assert "loss 'keras', steps within 1e-09, test loss within 1e-07" in capsys.readouterr().out
    assert replay.main([str(RECORDED)]) == 1
    assert replay.main([str(RECORDED), "--accelerator", "gpu", "--loss", "cross_entropy"]) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(script: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    assert script("replay").main([str(RECORDED), "--accelerator", "gpu"]) == 2
    assert capsys.readouterr() == ("", "replay: error: --accelerator gpu needs CUDA, and torch finds none here\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": ...}, "KeyError: 'seed'"),
        ({"seed": -1}, "seed must be a whole number from 0 to 4,294,967,295, got -1"),
        ({"epochs": 4}, "losses of 469 steps in each of 4 epochs, and two figures after each"),
        ({"epochs": -1}, "epochs must be a whole number from 1 to 1,000, got -1"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1 to 4,294,967,295, got 0"),
        ({"batch_size": 64}, "losses of 938 steps in each of 5 epochs"),
        (
            {"batch_size": 60_001, "step_loss": [0.1] * 5},
            "from 1 to 60,000, got 60001",
        ),
        ({"step_loss": None}, "losses of 469 steps in each of 5 epochs"),
        ({"step_loss": [[0.1]] * 2345}, "losses of 469 steps in each of 5 epochs"),
        ({"step_loss": ["1"] * 2345}, "TypeError"),
        ({"step_loss": [None] * 2345}, "TypeError"),
        ({"step_loss": [math.nan] * 2345}, "a figure is not finite"),
        ({"test_loss_and_acc_after_epoch": [[0, 1]] * 4}, "two figures after each"),
        ({"test_loss_and_acc_after_epoch": [0.1] * 10}, "two figures after each"),
        ({"test_loss_and_acc_after_epoch": [[0, 1]] * 4 + [0]}, "ValueError"),
    ],
)
def test_a_reference_of_another_form_is_refused(
    change: dict[str, Any], message: str, script: Callable, recorded: dict[str, Any]
) -> None:
    reference = {name: value for name, value in {**recorded, **change}.items() if value is not ...}
    with pytest.raises(InputError, match=r"^the reference does not have the form of the one in tests/ \(") as caught:
        script("replay").replay(reference)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"not JSON", "no JSON"),
        (b"\x89PNG\xff", "no JSON"),
        (b"[1, 2]", "does not have the form of the one in tests/"),
        (b'{"seed": 1}', "does not have the form of the one in tests/"),
    ],
    ids=["missing", "text", "binary", "list", "keys missing"],
)
def test_bad_input_is_one_line_and_exit_code_two(
    content: bytes | None, message: str, script: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "reference.json"
    if content is not None:
        path.write_bytes(content)
    assert script("replay").main([str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("replay: error: ")
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("epochs", ["0", "6"])
def test_epochs_that_were_not_recorded_are_refused(
    epochs: str, script: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("replay").main([str(RECORDED), "--epochs", epochs]) == 2
    assert capsys.readouterr().err == f"replay: error: epochs must be from 1 to the 5 recorded, got {epochs}\n"
