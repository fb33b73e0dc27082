"""The READMEs' examples do what they say."""

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from mnist_lightning.cli import main

ROOT = Path(__file__).parent.parent
README, PROOFS = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "scripts/README.md"))
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
# What stands in code in the second column of the recipes: commands, but for those that other tests run.
RECIPES = sorted(
    {
        command
        for text in (README, PROOFS)
        for row in re.search(r"\| to \| type \|\n(.*?)\n\n", text, flags=re.DOTALL)[1].splitlines()[1:]
        for command in re.findall(r"`((?:fit|validate|test|inspect)\b[^`]*)`", row.split(" | ")[1])
        if not re.search(r"DIR|ddp|[<>]|config\.yaml|last", command)
    }
)
QUICK = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3"]
NEEDS = {"TensorBoardLogger": "tensorboard", "MLFlowLogger": "mlflow"}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_there_are_examples() -> None:
    assert len(BLOCKS) >= 2
    assert len(RECIPES) >= 10


@pytest.mark.filterwarnings("ignore")
def test_the_python_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {}
    for block in BLOCKS:
        exec(block, namespace)
    trainer = namespace["trainer"]
    assert trainer.callback_metrics["test_acc"] > 0.9


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_a_command(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name, module in NEEDS.items():
        if name in recipe and not importlib.util.find_spec(module):
            pytest.skip(f"needs {module}")
    words = shlex.split(recipe)
    if words[0] in ("validate", "test"):
        main(["fit", *QUICK, "--data.val_size", "100"])
    main([*words, *(QUICK if words[0] == "fit" else [])])


def test_the_file_of_a_printed_config_can_be_edited_and_used(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--print_config"])
    Path("config.yaml").write_text(capsys.readouterr().out.replace("hidden_size: 512", "hidden_size: 8"))
    main(["fit", "--config", "config.yaml", *QUICK])
    assert "784 -> 8 ReLU -> 10" in capsys.readouterr().out


def test_every_room_has_its_line() -> None:
    rooms = [f"`{file.parent.name}/`" for file in (ROOT / "mnist_lightning").glob("*/__init__.py")]
    assert len(rooms) == 5
    assert all(name in README for name in [*rooms, "`files.py`", "`errors.py`"])


@pytest.mark.parametrize(("text", "folder"), [(README, ROOT), (PROOFS, ROOT / "scripts")], ids=["README", "scripts"])
def test_every_picture_and_link_leads_somewhere(text: str, folder: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", text)
    files = [link for link in links if not link.startswith(("http", "#"))]
    assert files
    assert all((folder / file).is_file() for file in files)
    headings = {line.lstrip("# ").lower() for line in text.splitlines() if line.startswith("#")}
    anchors = {re.sub(r"[^\w -]", "", heading).replace(" ", "-") for heading in headings}
    assert {link[1:] for link in links if link.startswith("#")} <= anchors
