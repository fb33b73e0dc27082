"""The training itself, held step by step against Keras 2.2.4, recorded and written down again in numpy."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

RECORDED = Path(__file__).parent / "keras-2.2.4-float64-seed-2019.json"
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


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
    made = {"seed": seed, "epochs": 1, "batch_size": batch_size, "step_loss": losses}
    return {**made, "test_loss_and_acc_after_epoch": test}


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


WAYS = {"keras": [], "cross_entropy": ["--loss", "cross_entropy"], "keras on a GPU": ["--accelerator", "gpu"]}
ON_GPU = {"keras on a GPU", "cross_entropy"}


@pytest.mark.parametrize(
    ("steps", "test_loss", "test_correct", "kept"),
    [
        ([[1e-13], [9e-13]], [9e-8, 0], [0, 0], {*WAYS}),
        ([[1e-13], [2e-12]], [0, 0], [0, 0], ON_GPU),
        ([[9e-10], [9e-10]], [0, 0], [0, 0], ON_GPU),  # it adds up in another order
        ([[2e-9], [2e-9]], [0, 0], [0, 0], {"cross_entropy"}),
        ([[9e-8], [1.0]], [1.0, 1.0], [0, 9], {"cross_entropy"}),
        ([[1e-13, 2e-7], [0]], [0, 0], [0, 0], set()),
        ([[0], [0]], [0, 2e-7], [0, 0], {"cross_entropy"}),
        ([[0], [0]], [0, 0], [0, -1], {"cross_entropy"}),
        ([[0, math.nan], [0]], [0, 0], [0, 0], set()),
    ],
)
def test_a_deviation_above_the_bound_is_an_exit_code_of_one(
    steps: Any, test_loss: Any, test_correct: Any, kept: set[str], script: Callable, monkeypatch: Any, capsys: Any
) -> None:
    replay = script("replay")
    monkeypatch.setattr(replay, "replay", lambda *_: replay.Deviations(steps, test_loss, test_correct))
    for way, args in WAYS.items():
        assert replay.main([str(RECORDED), *args]) == int(way not in kept)
        out = capsys.readouterr().out
        assert out.endswith(": yes\n" if way in kept else ": NO\n")
        assert ("steps within 1e-09, test loss within 1e-07" in out) == (way == "keras on a GPU")


@pytest.mark.parametrize(
    ("reference", "args", "message"),
    [
        (None, [], "No such file"),
        (b"\x89PNG\xff", [], "no JSON"),
        (b"[1, 2]", [], "does not have the form of the one in tests/"),
        ({"seed": ...}, [], "does not have the form of the one in tests/ (KeyError: 'seed')"),
        ({"epochs": 4}, [], "losses of 469 steps in each of 4 epochs, and two figures after each"),
        ({"batch_size": 0}, [], "batch_size must be at least 1, got 0"),
        ({"step_loss": [None] * 2345}, [], "TypeError"),
        ({"step_loss": [math.nan] * 2345}, [], "a figure is not finite"),
        ({"test_loss_and_acc_after_epoch": [0.1] * 10}, [], "two figures after each"),
        ({"test_loss_and_acc_after_epoch": [[0, 1]] * 4 + [0]}, [], "ValueError"),
        ({}, ["--epochs", "0"], "epochs must be from 1 to the 5 recorded, got 0"),
        ({}, ["--epochs", "6"], "epochs must be from 1 to the 5 recorded, got 6"),
        pytest.param({}, ["--accelerator", "gpu"], "needs CUDA, and torch finds none here", marks=NO_GPU),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_exit_code_two(
    reference: Any, args: list[str], message: str, script: Callable, recorded: Any, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "reference.json"
    if isinstance(reference, dict):
        changed = {name: value for name, value in {**recorded, **reference}.items() if value is not ...}
        path.write_text(json.dumps(changed))
    elif reference is not None:
        path.write_bytes(reference)
    assert script("replay").main([str(path), *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("replay: error: ")
    assert message in err
    assert len(err.splitlines()) == 1
