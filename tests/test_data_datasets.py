"""The data sets: torchvision's own images for small files of each format, and one line for odd files."""

import gc
import gzip
import hashlib
import json
import os
import pickle
import shutil
import socket
import struct
import tarfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torchvision import datasets as theirs

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.cli import main
from mnist_lightning.data import DATASETS
from mnist_lightning.data.datasets import Name, Split, checked, load_images, split_images
from mnist_lightning.errors import InputError

SETS = ["MNIST", "FashionMNIST", "KMNIST", "QMNIST", "EMNIST letters", "EMNIST digits", "CIFAR10", "CIFAR100"]
SHORT = ["--trainer.max_epochs", "2", "--model.hidden_size", "32", "--data.batch_size", "16"]
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def pattern(name: str, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Images that can be learnt: each class has a picture of its own, under noise."""
    row = DATASETS[name]
    pictures = 255 * (np.random.default_rng(0).random((len(row.classes), *row.image_shape)) < 0.1)
    generator = np.random.default_rng(1 + train)
    labels = np.arange(len(row.classes) * (20 if train else 5)) % len(row.classes)
    noise = generator.integers(0, 256, (len(labels), *row.image_shape))
    return (0.8 * pictures[labels] + 0.2 * noise).astype(np.uint8), labels


def idx(values: np.ndarray) -> bytes:
    kind = {"uint8": 8, "int32": 12}[str(values.dtype)]
    header = struct.pack(f">4B{values.ndim}I", 0, 0, kind, values.ndim, *values.shape)
    return header + values.astype(values.dtype.newbyteorder(">")).tobytes()


def contents(name: str, train: bool) -> dict[str, bytes]:
    """The files of a split, by name."""
    source, (images, labels) = DATASETS[name].source, pattern(name, train)
    if name.startswith("CIFAR"):
        key = {"CIFAR10": "labels", "CIFAR100": "fine_labels"}[name]
        files = [file for file, _ in (source.train_list if train else source.test_list)]
        parts = zip(files, np.array_split(images, len(files)), np.array_split(labels, len(files)), strict=True)
        meta = {source.meta["filename"]: pickle.dumps({source.meta["key"]: list(DATASETS[name].classes)})}
        return meta | {
            file: pickle.dumps({"data": pixels.reshape(len(pixels), -1), key: targets.tolist()})
            for file, pixels, targets in parts
        }
    prefix, grey, kept = "train" if train else "t10k", images[:, 0], labels.astype(np.uint8)
    if name.startswith("EMNIST"):
        prefix = f"emnist-{name.split()[1]}-{'train' if train else 'test'}"
        grey = grey.transpose(0, 2, 1).copy()  # on their side
        kept = kept + np.uint8(name == "EMNIST letters")
    if name == "QMNIST":
        prefix = f"qmnist-{'train' if train else 'test'}"
        writers = np.random.default_rng(2).integers(0, 500, (7, len(labels)))
        kept = np.stack([labels, *writers], axis=1).astype(np.int32)
    last = "idx2-int" if name == "QMNIST" else "idx1-ubyte"
    return {f"{prefix}-images-idx3-ubyte": idx(grey), f"{prefix}-labels-{last}": idx(kept)}


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Writes small files of a data set below ``data``, and returns the flags for them."""

    def write(name: str) -> list[str]:
        source, folder = DATASETS[name].source, tmp_path / "data" / DATASETS[name].folder
        folder.mkdir(parents=True)
        written = contents(name, train=True) | contents(name, train=False)
        for file, content in written.items():
            (folder / file).write_bytes(content)
        if name.startswith("CIFAR"):  # torchvision knows the original files' checksums
            digests = {file: hashlib.md5(content).hexdigest() for file, content in written.items()}
            for files in ("train_list", "test_list"):
                monkeypatch.setattr(source, files, [[file, digests[file]] for file, _ in getattr(source, files)])
            monkeypatch.setattr(source, "meta", {**source.meta, "md5": digests[source.meta["filename"]]})
        return flags(name)

    return write


def arguments(name: str) -> dict[str, Any]:
    dataset, _, split = name.partition(" ")
    return {"dataset": dataset, "emnist_split": split or None, "data_dir": "data"}


def flags(name: str) -> list[str]:
    return [f"--data.{argument}={value}" for argument, value in arguments(name).items() if value]


def state(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


@pytest.mark.parametrize("name", SETS)
def test_images_and_classes_are_those_of_torchvision_s_own_class(name: str, make: Callable) -> None:
    make(name)
    before, data = state(Path("data")), MNISTDataModule(**arguments(name))
    data.setup()
    options = {"split": name.split()[1]} if " " in name else {}
    for train, dataset in ((True, data.train_dataset), (False, data.test_dataset)):
        images, labels = pattern(name, train)
        assert np.array_equal(dataset.images, images)
        assert np.array_equal(dataset.targets, labels)
        assert (dataset.images.dtype, dataset.targets.dtype) == (torch.uint8, torch.int64)
        theirs_too = DATASETS[name].source("data", train=train, **options)
        assert len(dataset) == len(theirs_too)
        for index in range(0, len(dataset), 7):
            picture, label = theirs_too[index]
            pixels = np.atleast_3d(np.asarray(picture))
            if options:  # torchvision leaves EMNIST's images on their side
                pixels = pixels.transpose(1, 0, 2)
            image, target = dataset[index]
            assert np.array_equal(image.numpy(), pixels.transpose(2, 0, 1).astype("f4") / np.float32(255))
            assert target == label - (name == "EMNIST letters")
    assert (data.name, data.num_classes, data.image_shape) == (name, len(data.classes), images.shape[1:])
    assert state(Path("data")) == before  # a user's own folder is read, and never written


def test_the_table_is_torchvision_s() -> None:
    names = [f"EMNIST {split}" if name == "EMNIST" else name for name in get_args(Name) for split in get_args(Split)]
    assert set(DATASETS) == set(names)
    assert set(get_args(Split)) == set(theirs.EMNIST.splits)
    sizes = {"byclass": 62, "bymerge": 47, "balanced": 47, "letters": 26, "digits": 10, "mnist": 10}
    for name, row in DATASETS.items():
        assert row.source.__name__ == name.split()[0]
        assert len({*row.classes}) == len(row.classes) == {"CIFAR100": 100}.get(name, sizes.get(name[7:], 10))
    assert list(DATASETS["CIFAR100"].classes) == sorted(DATASETS["CIFAR100"].classes)


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


DAMAGES: dict[str, Any] = {
    "code in a pickle": lambda path: path.write_bytes(pickle.dumps({"data": Evil(), "labels": [0]})),
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "header alone": lambda path: path.write_bytes(path.read_bytes()[:8]),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"0"),
    "huge numbers": lambda path: path.write_bytes(path.read_bytes()[:4] + b"\xff" * 12 + path.read_bytes()[16:]),
    "wrong type": lambda path: path.write_bytes(path.read_bytes()[:2] + b"\x0e" + path.read_bytes()[3:]),
    "no format": lambda path: path.write_bytes(b"<!doctype html>" * 9),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "pipe": lambda path: [path.unlink(), os.mkfifo(path)],  # type: ignore[func-returns-value]  # both are called
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", SETS)
def test_odd_files_are_refused_in_one_line(name: str, damage: str, make: Callable) -> None:
    make(name)
    for train in (False, True):
        DAMAGES[damage](Path("data") / DATASETS[name].folder / [*contents(name, train)][-1])
        with pytest.raises(InputError, match=f"^no {name} in 'data' ") as caught:
            load_images(name, "data", train)
        assert len(str(caught.value).splitlines()) == 1
        assert DATASETS[name].folder in str(caught.value)
        assert ("copy in the package" if name == "MNIST" else "--data.download true") in str(caught.value)
    assert not Path("pwned").exists()


IMAGES, TARGETS = torch.zeros(3, 1, 28, 28, dtype=torch.uint8), torch.arange(3)


@pytest.mark.parametrize(
    ("images", "targets", "message"),
    [
        (IMAGES / 255, TARGETS, r"images of uint8 and shape \(3, 1, 28, 28\), got torch.float32 of"),
        (IMAGES[:0], TARGETS[:0], r"got torch.uint8 of shape \(0, 1, 28, 28\)"),
        (IMAGES.expand(3, 3, 28, 28), TARGETS, r"got torch.uint8 of shape \(3, 3, 28, 28\)"),
        (IMAGES, TARGETS.float(), r"a class for each of 3 images, got torch.float32 of shape \(3,\)"),
        (IMAGES, TARGETS[:, None], r"got torch.int64 of shape \(3, 1\)"),
        (IMAGES, TARGETS - 2, "classes in 0 ... 9, got -2 ... 0"),
    ],
)
def test_what_a_users_own_load_returns_is_looked_through(images: Any, targets: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^load must return .*{message}"):
        checked(images, targets, (1, 28, 28), 10)
    images, targets = checked(IMAGES[:, 0].numpy(), TARGETS.to(torch.int8) - 1, (1, 28, 28), 10)
    assert torch.equal(images, IMAGES[:, 0])
    assert (targets.dtype, targets.tolist()) == (torch.int64, [-1, 0, 1])


@pytest.mark.parametrize(
    ("val_size", "train_size", "held_out", "trained"),
    [
        *((0, None, 0, 60_000), (0.0, None, 0, 60_000), (1, None, 1, 59_999), (59_999, None, 59_999, 1)),
        *((0.1, None, 6_000, 54_000), (0.25, 100, 15_000, 100), (59_900, 100, 59_900, 100), (0.5, 0.5, 30_000, 30_000)),
        *((0, 1, 0, 1), (0, 60_000, 0, 60_000), (0, 1.0, 0, 60_000), (10, 0.25, 10, 15_000)),
    ],
)
def test_counts_or_fractions_are_taken(val_size: float, train_size: Any, held_out: int, trained: int) -> None:
    train, val = split_images(60_000, val_size, train_size)
    assert (len(train), len(val)) == (trained, held_out)
    assert len(np.unique(np.concatenate([train, val]))) == trained + held_out
    assert np.array_equal(val, split_images(60_000, val_size, None)[1])  # whatever train_size is
    if train_size is not None:
        assert np.array_equal(train, split_images(60_000, 0, train_size)[0])  # whatever val_size is


def test_a_larger_size_has_the_images_of_a_smaller_one_and_more() -> None:
    sizes = (1, 100, 10_000, 59_999)
    held_out = [set(split_images(60_000, size, None)[1].tolist()) for size in sizes]
    trained = [set(split_images(60_000, 0, size)[0].tolist()) for size in sizes]
    for images in (held_out, trained):
        assert all(smaller < larger for smaller, larger in pairwise(images))
        assert 29_000 < np.mean([*images[2]]) < 31_000  # drawn at random, from all of them


@pytest.mark.parametrize(
    ("val_size", "train_size", "message"),
    [
        *((value, None, r"^val_size must be a count from 0 to 59,999, .*, got ") for value in (-1, 60_000, 1.0, 1.5)),
        *((value, None, r"^val_size must be a count .* or a fraction below 1.0 of the") for value in (-0.1, 1e-9)),
        *((0, value, r"^train_size must be a count from 1 to 60,000") for value in (0, -1, 60_001, 2.5, 0.0, 1e-9)),
        (10_000, 50_001, r"^train_size must be a count from 1 to 50,000, .*, got 50001"),
        (0.2, 0.9, r"^train_size must be a count from 1 to 48,000, .*, got 0.9"),
    ],
)
def test_a_size_that_leaves_no_images_is_refused_by_name(val_size: Any, train_size: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        split_images(60_000, val_size, train_size)
    assert len(str(caught.value).splitlines()) == 1


@pytest.fixture
def served(tmp_path: Path, make: Callable, server: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of small files of KMNIST and CIFAR10 that torchvision downloads from this machine."""
    folder = tmp_path / "served"
    folder.mkdir()
    for name in ("KMNIST", "CIFAR10"):
        make(name)
    for file in Path("data/KMNIST/raw").iterdir():
        (folder / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    with tarfile.open(folder / "cifar.tar.gz", "w:gz") as archive:
        archive.add("data/cifar-10-batches-py", "cifar-10-batches-py")
    shutil.rmtree("data")
    md5 = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    monkeypatch.setattr(theirs.CIFAR10, "tgz_md5", md5.pop("cifar.tar.gz"))
    monkeypatch.setattr(theirs.KMNIST, "resources", [*md5.items()])
    monkeypatch.setattr(theirs.CIFAR10, "url", f"{server}/served/cifar.tar.gz")
    monkeypatch.setattr(theirs.KMNIST, "mirrors", [f"{server}/served/"])
    return folder


@pytest.mark.filterwarnings("ignore")  # torchvision leaves a connection open
@pytest.mark.parametrize("name", ["KMNIST", "CIFAR10"])
def test_download_fetches_what_is_missing_if_it_may_and_fails_in_one_line(name: str, served: Path) -> None:
    MNISTDataModule(**arguments(name)).prepare_data()
    assert not Path("data").exists()
    data = MNISTDataModule(**arguments(name), download=True)
    files = {path: path.read_bytes() for path in served.iterdir()}
    for damage in (lambda path: path.write_bytes(b"odd"), lambda path: path.unlink()):
        for path in files:
            damage(path)
        with pytest.raises(InputError, match=f"^no {name} in 'data' \\(.*[eE]rror") as caught:
            data.prepare_data()
        assert len(str(caught.value).splitlines()) == 1
        shutil.rmtree("data")
    for path, content in files.items():
        path.write_bytes(content)
    data.prepare_data()
    shutil.rmtree(served)  # what is there is not fetched again
    data.prepare_data()
    data.setup()
    assert np.array_equal(data.train_dataset.images, pattern(name, train=True)[0])
    gc.collect()


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != SETS[4])) for name in SETS])
@pytest.mark.filterwarnings("ignore")
def test_every_command_runs_on_every_data_set(
    name: str, make: Callable, fails: Callable, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given, row = make(name), DATASETS[name]

    def forbidden(*args: Any) -> None:
        raise AssertionError("a command opens a connection")

    monkeypatch.setattr(socket.socket, "connect", forbidden)
    main(["inspect", *given])
    assert f"{row.classes[-1]} " in capsys.readouterr().out
    main(["fit", *SHORT, *given, "--data.val_size", "0.1", "--data.download", "true"])  # no leave for other commands
    out = " ".join(capsys.readouterr().out.split())
    pixels, train, test = int(np.prod(row.image_shape)), len(row.classes) * 18, len(row.classes) * 5
    assert f"{name} in data: {train:,} training images, {len(row.classes) * 2} held out" in out
    assert f"{test} test images" in out
    assert f"{pixels} -> 32 ReLU -> {len(row.classes)}" in out
    for command in ("validate", "test", "predict"):
        main([command])
    folder = Path("lightning_logs/version_0")
    assert "download: false" in (folder / "config.yaml").read_text()
    report = json.loads((folder / "report.json").read_text())
    assert report["images"] == test
    assert report["accuracy"] > 5 / len(row.classes)  # it has learnt the pattern
    predictions = (folder / "predictions.csv").read_text().splitlines()
    assert len(predictions) == 1 + test
    assert predictions[0].endswith(f",p{len(row.classes) - 1}")
    main(["export", "--format", "pt2"])
    main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3"])
    assert "Epoch 3/3" in capsys.readouterr().out
    page = Image.new("L", (400, 300), 255)
    ImageDraw.Draw(page).line([(190, 80), (210, 220)], 0, 20)
    page.save("page.png")
    if row.image_shape != (1, 28, 28):
        assert "images of (1, 28, 28), this network's are (3, 32, 32)" in fails("draw", "--no_open")
        assert "this run's have (3, 32, 32)" in fails("predict", "page.png")
        return
    main(["draw", "--no_open"])
    assert json.dumps(list(row.classes))[1:-1] in (folder / "draw.html").read_text()
    main(["predict", "page.png"])
    read = (folder / "pictures.csv").read_text().splitlines()
    assert read[0].endswith(f",p{row.classes[-1]}")
    assert f"page.png  {read[1].split(',')[5]}" in capsys.readouterr().out


class OldNetwork(MNISTClassifier):
    """A subclass as users have written it, which knows nothing of shapes."""

    def __init__(self, hidden_size: int = 16) -> None:
        super().__init__(hidden_size)


@pytest.mark.filterwarnings("ignore")
def test_a_network_without_the_new_parameters_goes_on_working(make: Callable, fails: Callable) -> None:
    main(["fit", *SHORT[:4], *make("KMNIST")], model_class=OldNetwork)
    main(["test"], model_class=OldNetwork)
    assert "image_shape" in Path("lightning_logs/version_0/hparams.yaml").read_text()  # the base class's
    assert "contradicts the checkpoint's 'KMNIST'" in fails("test", *make("FashionMNIST"), model_class=OldNetwork)
    for name, has in (("CIFAR10", "gets (3, 32, 32)"), ("EMNIST letters", "10 classes, and EMNIST letters has 26")):
        line = fails("fit", *SHORT[:4], *make(name), model_class=OldNetwork)
        assert line.startswith("mnist_lightning: error: OldNetwork ")
        assert has in line


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist: see scripts/README.md")
def test_the_tutorials_network_learns_the_real_fashion_mnist() -> None:
    raw = Path("data/FashionMNIST/raw")
    raw.mkdir(parents=True)
    for file in DEBIAN.glob("*.gz"):  # torchvision reads them unpacked
        (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    main(["fit", *flags("FashionMNIST")])
    main(["test"])
    report = json.loads(Path("lightning_logs/version_0/report.json").read_text())
    assert 0.85 < report["accuracy"] < 0.90
    assert report["classes"][7]["class"] == "Sneaker"
