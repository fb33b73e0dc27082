"""The READMEs' examples do what they say."""

import contextlib
import csv
import importlib.util
import io
import re
import shlex
import shutil
import subprocess
import sys
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import nn

from mnist_lightning.cli import main
from mnist_lightning.data import PACKAGED
from mnist_lightning.safe_checkpoints import load_checkpoint

ROOT = Path(__file__).parent.parent
PAGES = {name: (ROOT / name / "README.md").read_text("utf-8") for name in (".", "scripts", "scripts/overfitting")}
README, PROOFS = PAGES["."], PAGES["scripts"]
# What stands in code in the second column of the recipes: all commands that need no file, or that have one here.
RECIPES = {
    command.replace("DIR", str(PACKAGED) if "data_dir" in command else "elsewhere")
    for text in (README, PROOFS)
    for row in re.search(r"\| to \| type \|\n(.*?)\n\n", text, flags=re.DOTALL)[1].splitlines()[1:]
    for command in re.findall(r"`((?:fit|validate|test|predict|inspect|draw|export)\b[^`]*)`", row.split(" | ")[1])
}
# Tested below, in test_distributed.py, in test_data_datasets.py and in test_pictures.py.
ELSEWHERE = {command for command in RECIPES if any(word in command for word in ("config", "ddp", "dataset", "photo"))}
SHORT = "--trainer.max_epochs 3 --trainer.limit_train_batches 3"
# What a recipe prints or leaves that `fit` without its flags does not.
SHOWS = {
    "inspect": "Written inspection/samples.png",
    "draw": "version_0/draw.html",
    "export": "version_0/model.onnx",
    "fit --data.val_size 10000": "50,000 training images, 10,000 held out",
    "validate": "Validate val_loss",
    "fit --model.hidden_size 128": "784 -> 128 ReLU -> 10",
    "fit --model.dropout": "ReLU, dropout 0.5",
    "fit --model.weight_decay": "",
    "fit --data.train_size": "1,000 training images",
    "fit --data.train_transform": "transformed by RandomAffine",
    "fit --data.transform": "transformed by Normalize",
    "fit --seed_everything": "",
    "fit --optimizer": "",
    "fit --lr_scheduler": "",
    "fit --data.val_size 10000 --trainer.max_epochs 50": "EarlyStopping{'monitor': 'val_loss'",
    "fit --ckpt_path last": "Finished all 3 epochs",
    "fit --ckpt_path last --trainer.max_epochs 10": "Epoch 10/10",
    "fit --trainer.accelerator cpu": "accelerator: cpu",
    "fit --threads": "CPU, 3 threads",
    "fit --trainer.default_root_dir": "elsewhere/lightning_logs/version_0/metrics.csv",
    "fit --trainer.precision": "precision bf16-mixed",
    "fit --matmul_precision": "matmul_precision: medium",
    "fit --trainer.logger TensorBoardLogger": "tensorboard/lightning_logs",
    "fit --trainer.logger MLFlowLogger": "mlflow.db",
    "fit --trainer.logger false": "version_0: config.yaml, hparams.yaml, test.json",
    "fit --data.data_dir": f"MNIST in {PACKAGED}",
}
# With these flags, the figures must be others, too: a flag that is only printed and recorded would do nothing.
TRAINS_OTHERWISE = ("--model.", "--data.val_size", "--data.tra", "--seed", "--optimizer", "--lr_", "bf16")
NEEDS = {"TensorBoardLogger": "tensorboard", "MLFlowLogger": "mlflow", "export": "onnxscript"}


@pytest.fixture(autouse=True)
def _opens_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda address: True)  # `draw` would open its page


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)```", text, flags=re.DOTALL | re.MULTILINE)


def program(word: str) -> str:
    """The one example that holds a word."""
    (example,) = [block for block in blocks(README + PROOFS) if word in block]
    return example


def executed(word: str) -> dict[str, Any]:
    """The names that the example makes."""
    namespace: dict[str, Any] = {"__name__": "page"}
    exec(program(word), namespace)
    return namespace


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len(README.split()) <= 1_500


@pytest.mark.filterwarnings("ignore")
def test_the_example_in_python_trains_and_tests() -> None:
    namespace = executed("hidden_size=128")
    assert namespace["trainer"].callback_metrics["test_acc"] > 0.9
    assert namespace["model"].network[1].out_features == 128
    assert len(namespace["data"].val_dataset) == 10_000


@pytest.mark.filterwarnings("ignore")
def test_the_example_of_an_order_trains_on_it(trainer: Callable[..., Trainer], kept: Any) -> None:
    model = kept()
    trainer(limit_train_batches=20).fit(model, executed("EasiestFirst")["EasiestFirst"](train_size=10_000))
    inks = model.all("train")[0].sum(dim=(1, 2, 3))
    assert len(inks) == 20 * 128
    assert np.all(np.diff(inks) >= -1e-3)  # sums of float32


@pytest.mark.slow
def test_the_example_of_a_class_of_ones_own_has_the_commands() -> None:
    Path("train.py").write_text(program("main(model_class"))
    command = [sys.executable, "train.py", "fit", *SHORT.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.search(r"Next +python train.py predict\n", done.stdout)
    main(["fit", *SHORT.split(), "--trainer.default_root_dir", "plain"])
    own, plain = (Path(root, "lightning_logs/version_0/metrics.csv").read_text() for root in (".", "plain"))
    assert own != plain  # its `forward` is the one that is trained


@pytest.mark.filterwarnings("ignore")
def test_the_example_of_pictures_of_ones_own_has_the_commands(capsys: Any, fails: Callable[..., str]) -> None:
    data_class = executed("main(data_class")["Pictures"]
    for split, number in (("train", 30), ("test", 10)):
        for place, label in enumerate(("circle", "square", "tree")):
            folder = Path("pictures", split, label)
            folder.mkdir(parents=True)
            for i in range(number):
                pixels = np.random.default_rng(i).integers(0, 60, (40, 40, 3), np.uint8)
                pixels[:, :, place] += 150
                Image.fromarray(pixels).save(folder / f"{i}.png")

    def run(*args: str) -> str:
        main([*args], data_class=data_class)
        return " ".join(capsys.readouterr().out.split())

    fit = ["fit", "--data.batch_size", "16", "--model.hidden_size", "16"]
    assert "tree 27 33.3%" in run("inspect", "--data.val_size", "0.1")
    out = run(*fit, "--data.val_size", "0.1")
    assert "Data Pictures in pictures: 81 training images, 9 held out, 30 test images" in out
    assert "3072 -> 16 ReLU -> 3" in out
    assert "square 10" in run("test")
    run("validate")
    run("predict")
    assert "Epoch 6/6" in run("fit", "--ckpt_path", "last", "--trainer.max_epochs", "6")
    message = "val_size must be a count from 0 to 89, so that images are left to train on"
    assert message in fails(*fit, "--data.val_size", "90", data_class=data_class)
    assert "nowhere" in fails(*fit, "--data.data_dir", "nowhere", data_class=data_class)
    shutil.copytree("pictures", "fewer")
    shutil.rmtree("fewer/test/circle")  # ImageFolder would number the others anew
    shutil.copytree("pictures", "others")
    for split in ("train", "test"):
        Path("others", split, "circle").rename(Path("others", split, "ring"))
    assert "('circle', 'square', 'tree')" in fails("test", "--data.data_dir", "fewer", data_class=data_class)
    line = fails("test", "--data.data_dir", "others", data_class=data_class)
    assert "['circle', 'square', 'tree'], here it is ['ring'" in line
    Path("pictures/test/tree/0.png").write_bytes(b"no picture")
    assert "the images cannot be read: cannot identify image file" in fails(*fit, data_class=data_class)


def test_the_example_of_a_loss_is_what_is_trained_on() -> None:
    model, images, targets = executed("compute_loss")["Smoothed"](), torch.rand(8, 784), torch.arange(8)
    loss = model.training_step((images, targets), 0)
    assert torch.equal(loss, nn.functional.cross_entropy(model(images), targets, label_smoothing=0.1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_page_for_python_runs_from_top_to_bottom(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", *SHORT.split(), "--data.val_size", "500", "--model.hidden_size", "8"])
    (page,) = re.findall(r"^## From Python\n(.*?)^## ", PROOFS, flags=re.DOTALL | re.MULTILINE)
    examples = blocks(page)
    assert len(examples) >= 7
    namespace: dict[str, Any] = {"__name__": "page"}
    for example in examples[:2]:
        exec(example, namespace)
    assert namespace["report"].accuracy > 0.7
    assert {path.name for path in Path("report").iterdir()} == {"report.json", "confusion_matrix.png", "mistakes.png"}
    for example in examples[2:]:
        exec(example, namespace)
        if "Run.newest" in example:
            assert namespace["data"].num_val == 500
            assert namespace["model"].network[-1].in_features == 8
    out = capsys.readouterr().out
    assert f"{namespace['run'].metrics[-1]['test_acc']} lightning_logs/version_0/checkpoints/last.ckpt" in out
    (logged,) = Path().glob("lightning_logs/version_3/metrics.csv")
    with logged.open() as file:
        losses = [row["loss"] for row in csv.DictReader(file) if row["loss"]]
    assert len(losses) == len(set(losses)) == 59_500 // 128 // 10  # of StepLoss


def test_the_example_of_normalised_pixels_has_mean_0_and_variance_1() -> None:
    images, _ = executed("Normalize")["data"].sample(60_000)
    assert float(images.mean()) == pytest.approx(0, abs=1e-3)
    assert float(images.std()) == pytest.approx(1, abs=1e-3)


def test_the_example_of_onednn_changes_the_large_layer_where_the_cpu_has_it() -> None:
    network = executed("prefer_onednn")["network"]
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    assert [type(network[i]) is nn.Linear for i in (1, 3)] == [not wide, True]


def test_the_example_of_onnxruntime_reads_a_digit(capsys: pytest.CaptureFixture[str], mnist: Any) -> None:
    pytest.importorskip("onnxruntime")
    if torch.__version__.startswith("2.6."):
        pytest.skip("torch is too old to export")
    main(["fit", *SHORT.split()])
    main(["export"])
    images, digits = mnist("t10k")
    Image.fromarray(images[0]).save("digit.png")
    capsys.readouterr()
    executed("onnxruntime")
    assert capsys.readouterr().out.startswith(f"{digits[0]} 0.")


def shown(command: str) -> tuple[str, list[str]]:
    """What a command prints and leaves, names of files and callbacks included, and the figures of ``metrics.csv``."""
    first, *rest = shlex.split(command)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        main([first, *(SHORT.split() if first == "fit" else []), *rest])
    names = [path.as_posix() for path in Path().rglob("*")]
    configs = [path.read_text() for path in Path().rglob("config.yaml")]
    callbacks = [str(list(load_checkpoint(path)["callbacks"])) for path in Path().rglob("*.ckpt")]
    figures = [path.read_text() for path in Path().rglob("metrics.csv")]
    text = " ".join("\n".join([output.getvalue(), *names, *configs, *callbacks]).split())  # lines have no fixed width
    return text, figures


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("plain"))
        return shown("fit")


def test_every_recipe_is_tested() -> None:
    assert len(RECIPES) >= 20
    assert {expected_of(recipe) for recipe in RECIPES - ELSEWHERE} == SHOWS.keys()


def expected_of(recipe: str) -> str:
    return max((start for start in SHOWS if recipe.startswith(start)), key=len)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", sorted(RECIPES - ELSEWHERE))
def test_a_recipe_does_what_it_says(recipe: str, plain: tuple[str, list[str]]) -> None:
    for name, module in NEEDS.items():
        if name in recipe and not importlib.util.find_spec(module):
            pytest.skip(f"needs {module}")
    if recipe in ("validate", "draw", "export") or "last" in recipe:
        shown("fit --data.val_size 100")
    text, figures = shown(recipe)
    expected = SHOWS[expected_of(recipe)]
    otherwise = any(flag in recipe for flag in TRAINS_OTHERWISE)
    assert expected or otherwise
    if expected:
        assert expected in text
        assert expected not in plain[0]
    if otherwise:
        assert figures != plain[1]


def test_the_file_of_a_printed_config_can_be_edited_and_used(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--print_config"])
    Path("config.yaml").write_text(capsys.readouterr().out.replace("hidden_size: 512", "hidden_size: 8"))
    main(["fit", "--config", "config.yaml", *SHORT.split()])
    assert "784 -> 8 ReLU -> 10" in capsys.readouterr().out


def test_the_commands_of_scripts_and_tests_are_there() -> None:
    text = "\n".join(PAGES.values())
    scripts = re.findall(r"python scripts/(\w+\.py)([^`\n]*)", text)
    assert {name for name, _ in scripts} == {path.name for path in (ROOT / "scripts").glob("*.py")}
    for name, args in scripts:
        source = (ROOT / "scripts" / name).read_text("utf-8")
        assert all(f'"{flag}"' in source for flag in re.findall(r"--[\w-]+", args)), (name, args)
    tests = re.findall(r"^pytest (tests/\w+\.py) -k (\w+)", README, flags=re.MULTILINE)
    assert tests
    for name, word in tests:
        assert re.search(rf"def test_\w*{word}", (ROOT / name).read_text("utf-8"))


def test_the_headline_figures_stand_beside_their_commands() -> None:
    claims = re.findall(r"^- .*\]\((scripts/.*?README\.md)", README, flags=re.MULTILINE)
    assert len(claims) == 3
    for line in README.splitlines():
        page = re.search(r"\]\((scripts.*?)/README\.md", line)
        if line.startswith("- ") and page:
            figures = re.findall(r"\d\.\d+e-\d+|\d+\.\d+|\d,\d{3}", line.replace("2.2.4", ""))
            assert figures
            assert all(figure in PAGES[page[1]] for figure in figures), line


def test_the_rooms_are_those_that_the_linter_checks() -> None:
    rooms = [f"`{file.parent.name}/`" for file in (ROOT / "mnist_lightning").glob("*/__init__.py")]
    assert len(rooms) == 5
    assert all(name in README for name in [*rooms, "`files.py`", "`errors.py`"])
    layers = re.search(r"^layers = \[(.*)\]$", (ROOT / "pyproject.toml").read_text("utf-8"), flags=re.MULTILINE)[1]
    levels = [", ".join(f"`{room}`" for room in level.split(" | ")) for level in re.findall(r'"(.*?)"', layers)]
    assert " > ".join(levels).removeprefix("`__main__` > ") in README


@pytest.mark.parametrize("name", PAGES)
def test_every_picture_link_and_file_is_there(name: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", PAGES[name]) if not link.startswith("http")]
    assert links
    for link in links:
        file, _, anchor = link.partition("#")
        page = ROOT / name / (file or "README.md")
        assert page.is_file(), link
        headings = re.findall(r"^#+ (.*)", page.read_text("utf-8"), flags=re.MULTILINE) if anchor else []
        anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in anchors, link
    for file in re.findall(r"`((?:cli|data|model|results|runs)/\w+\.py)`", PAGES[name]):
        assert (ROOT / "mnist_lightning" / file).is_file(), file
