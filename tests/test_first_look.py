"""The tutorial, retold: a script that runs anywhere, and a loop as short as it says."""

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from PIL import Image

SCRIPT = Path(__file__).parent.parent / "scripts" / "first_look.py"


@pytest.mark.slow
def test_by_hand_and_with_the_package_the_numbers_are_the_same(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, SCRIPT, "--epochs", "1"],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    lines = run.stdout.splitlines()
    (row,) = [line.split() for line in lines[lines.index(next(li for li in lines if "loss by hand" in li)) + 1 :][:1]]
    epoch, loss, package_loss, acc, package_acc = row
    assert (epoch, loss, acc) == ("1", package_loss, package_acc)
    assert 0.24 < float(loss) < 0.27
    assert 0.92 < float(acc) < 0.93
    evaluated = [line for line in lines if line.startswith("test_loss")]
    assert len(evaluated) == 2
    assert evaluated[0] == evaluated[1]
    assert "largest difference between two weights: 0" in run.stdout
    pictures = {"samples.png", "curves.png", "confusion_matrix.png", "mistakes.png", "first_layer.png"}
    assert {path.name for path in (tmp_path / "first_look").iterdir()} == pictures
    assert {path.name for path in tmp_path.iterdir()} == {"first_look"}
    for name in pictures:
        assert f"wrote {Path('first_look') / name}" in lines
        with Image.open(tmp_path / "first_look" / name) as picture:
            assert picture.width == 1600


def test_network_and_loop_use_nothing_of_the_package() -> None:
    functions = {
        node.name: node for node in ast.parse(SCRIPT.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)
    }
    assert "mnist_lightning" not in ast.unparse(functions["build"]) + ast.unparse(functions["train"])


NOTEBOOK = SCRIPT.with_suffix(".ipynb")


def test_the_notebook_says_what_the_script_says(script: Callable[[str], ModuleType]) -> None:
    kept = nbformat.read(NOTEBOOK, as_version=4)
    cells = script("notebook").notebook_of(SCRIPT.read_text("utf-8")).cells
    assert [(cell.cell_type, cell.source) for cell in kept.cells] == [(cell.cell_type, cell.source) for cell in cells]
    outputs = [output for cell in kept.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "largest difference between two weights: 0" in printed
    assert "Ankle boot" in printed
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 6
    assert NOTEBOOK.stat().st_size < 1_000_000  # GitHub shows it


@pytest.mark.slow
def test_the_notebook_runs(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    made = script("notebook")
    short = SCRIPT.read_text("utf-8").replace("default=5", "default=1")
    ran = made.run(made.notebook_of(short), str(tmp_path))
    printed = "".join(o.text for cell in ran.cells for o in cell.get("outputs", []) if o.output_type == "stream")
    assert "Epoch 1/1" in printed
    assert "largest difference between two weights: 0" in printed


@pytest.mark.parametrize("name", ["boston_housing", "cifar10", "cifar100", "fashion_mnist", "imdb", "mnist", "reuters"])
def test_each_data_set_of_keras_has_its_row(name: str) -> None:
    assert f"# | `{name}` |" in SCRIPT.read_text("utf-8")
