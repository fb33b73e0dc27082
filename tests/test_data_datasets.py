"""The other data sets: small files of each format go through all commands, and odd files through none."""

import dataclasses
import functools
import gc
import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import socket
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image, ImageDraw
from torchvision import datasets as theirs

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.cli import main
from mnist_lightning.data import DATASETS
from mnist_lightning.data.datasets import Name, Split, load_images
from mnist_lightning.errors import InputError
from mnist_lightning.files import load_checkpoint

SETS = ["MNIST", "FashionMNIST", "KMNIST", "QMNIST", "EMNIST letters", "EMNIST digits", "CIFAR10", "CIFAR100"]
SHORT = ["--trainer.max_epochs", "2", "--model.hidden_size", "32", "--data.batch_size", "16"]
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


# ------------------------------------------------------------------ small files


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
    return (
        struct.pack(f">4B{values.ndim}I", 0, 0, kind, values.ndim, *values.shape)
        + values.astype(values.dtype.newbyteorder(">")).tobytes()
    )


class _Python2(pickle._Pickler):
    """Pickles as Python 2 did, which has written CIFAR's files: all text is bytes."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def _save_bytes(self, value: bytes) -> None:
        pickler: Any = self
        pickler.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        pickler.memoize(value)

    def _save_text(self, value: str) -> None:
        self._save_bytes(value.encode())

    dispatch[bytes] = _save_bytes
    dispatch[str] = _save_text


def pickled(batch: Any) -> bytes:
    file = io.BytesIO()
    _Python2(file, protocol=2).dump(batch)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def contents(name: str, train: bool) -> list[bytes]:
    """The content of each file of a split."""
    images, labels = pattern(name, train)
    files = DATASETS[name].train if train else DATASETS[name].test
    if name.startswith("CIFAR"):
        kind = "labels" if name == "CIFAR10" else "fine_labels"
        return [
            pickled({"data": part.reshape(len(part), -1), kind: targets.tolist(), "filenames": ["a.png"] * len(part)})
            for part, targets in zip(
                np.array_split(images, len(files)), np.array_split(labels, len(files)), strict=True
            )
        ]
    grey = images[:, 0]
    if name.startswith("EMNIST"):
        grey = grey.transpose(0, 2, 1).copy()  # on their side
        labels = labels + (name == "EMNIST letters")
    if name == "QMNIST":
        columns = [labels, *np.random.default_rng(2).integers(0, 500, (7, len(labels)))]
        return [idx(grey), idx(np.stack(columns, axis=1).astype(np.int32))]
    return [idx(grey), idx(labels.astype(np.uint8))]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Writes small files of a data set, puts their checksums into the table, and returns the flags for them."""

    def write(name: str, packed: bool = False) -> list[str]:
        row, checksums = DATASETS[name], {}
        folder = tmp_path / "data" / row.folder
        folder.mkdir(parents=True)
        for train, files in ((True, row.train), (False, row.test)):
            for file, content in zip(files, contents(name, train), strict=True):
                stored = gzip.compress(content, 1) if packed else content
                stored_as = f"{file}.gz" if packed else file
                (folder / stored_as).write_bytes(stored)
                known = row.checksums.get(stored_as) or row.checksums.get(file)
                if known is not None:
                    algorithm = "md5" if len(known) == 32 else "sha256"
                    by_packed = stored_as in row.checksums
                    digest = hashlib.new(algorithm, stored if by_packed else content).hexdigest()
                    checksums[stored_as if by_packed else file] = digest
        monkeypatch.setitem(DATASETS, name, dataclasses.replace(row, checksums=checksums))
        # MNIST's sizes are known without its files, but not those of these small ones.
        monkeypatch.setattr("mnist_lightning.data.datamodule.TRAIN_IMAGES", 200)
        return flags(name, Path("data"))

    monkeypatch.chdir(tmp_path)
    return write


def flags(name: str, root: Path) -> list[str]:
    dataset, _, split = name.partition(" ")
    return ["--data.dataset", dataset, "--data.data_dir", str(root)] + ["--data.emnist_split", split] * bool(split)


def loaded(name: str, root: Path, **kwargs: Any) -> MNISTDataModule:
    dataset, _, split = name.partition(" ")
    data = MNISTDataModule(data_dir=root, dataset=dataset, emnist_split=split or None, **kwargs)
    data.setup("fit")
    data.setup("test")
    return data


# ------------------------------------------------------------------ all commands


@pytest.mark.parametrize("packed", [False, True], ids=["unpacked", "packed"])
@pytest.mark.parametrize("name", SETS)
def test_images_and_classes_are_those_that_were_written(name: str, packed: bool, make: Callable) -> None:
    if packed and name.startswith("CIFAR"):
        pytest.skip("CIFAR's batches are never packed by themselves")
    make(name, packed)
    data = loaded(name, Path("data"))
    for train, dataset in ((True, data.train_dataset), (False, data.test_dataset)):
        images, labels = pattern(name, train)
        assert np.array_equal(dataset.images, images)
        assert np.array_equal(dataset.targets, labels)
        assert dataset.targets.dtype == torch.int64
    assert data.image_shape == images.shape[1:]
    assert (data.num_classes, data.num_train, data.num_test) == (len(data.classes), 20 * len(data.classes), len(images))
    known = packed or name in ("MNIST", "FashionMNIST", "CIFAR10", "CIFAR100")
    assert data.proven == (known and not name.startswith("EMNIST"))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name != "EMNIST letters")) for name in SETS],
)
@pytest.mark.filterwarnings("ignore")
def test_every_command_runs_on_every_data_set(
    name: str, make: Callable, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given, row = make(name), DATASETS[name]

    def forbidden(*args: Any) -> None:
        raise AssertionError("a command opens a connection")

    monkeypatch.setattr(socket.socket, "connect", forbidden)
    main(["inspect", *given])
    assert f"{row.classes[-1]} " in capsys.readouterr().out
    main(["fit", *SHORT, *given, "--data.val_size", "0.1"])
    out = capsys.readouterr().out
    pixels = int(np.prod(row.image_shape))
    train, test = len(row.classes) * 18, len(row.classes) * 5
    assert f"{name} in data: {train:,} training images, {len(row.classes) * 2} held out" in " ".join(out.split())
    assert f"{test} test images" in " ".join(out.split())
    assert ("not proven" in " ".join(out.split())) == (name in ("KMNIST", "QMNIST") or name.startswith("EMNIST"))
    assert f"{pixels} -> 32 ReLU -> {len(row.classes)}" in out
    for command in ("validate", "test", "predict"):
        main([command])
    folder = Path("lightning_logs/version_0")
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
        assert "images of (1, 28, 28), this network's are (3, 32, 32)" in fails(capsys, "draw", "--no_open")
        assert "this run's have (3, 32, 32)" in fails(capsys, "predict", "page.png")
        return
    main(["draw", "--no_open"])
    assert json.dumps(list(row.classes))[1:-1] in (folder / "draw.html").read_text()
    main(["predict", "page.png"])
    read = (folder / "pictures.csv").read_text().splitlines()
    assert read[0].endswith(f",p{row.classes[-1]}")
    assert f"page.png  {read[1].split(',')[5]}" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_has_its_data_set_and_no_leave_to_download(
    make: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["fit", *SHORT, *make("CIFAR10"), "--data.download", "true"])
    (path,) = Path().rglob("last.ckpt")
    assert "download: false" in (path.parent.parent / "config.yaml").read_text()
    checkpoint = load_checkpoint(path)
    assert "download" not in checkpoint["datamodule_hyper_parameters"]
    assert checkpoint["datamodule_hyper_parameters"]["dataset"] == "CIFAR10"
    assert MNISTClassifier.load_from_checkpoint(path).image_shape == (3, 32, 32)
    checkpoint["datamodule_hyper_parameters"]["download"] = True
    torch.save(checkpoint, path)
    assert MNISTDataModule.load_from_checkpoint(path).download is False
    config = path.parent.parent / "config.yaml"
    config.write_text(config.read_text().replace("download: false", "download: true"))
    monkeypatch.setattr("mnist_lightning.data.datamodule.download_missing", None)  # whoever calls it fails
    main(["test"])
    main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3"])


def fails(capsys: pytest.CaptureFixture[str], *args: str, **kwargs: Any) -> str:
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        main(list(args), **kwargs)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sorted(Path().rglob("*")) == before
    return line


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_of_one_data_set_is_refused_on_another(
    make: Callable, capsys: pytest.CaptureFixture[str], trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    main(["fit", *SHORT, *make("KMNIST")])
    other = flags("FashionMNIST", tmp_path / "data")
    capsys.readouterr()
    assert "dataset FashionMNIST contradicts the checkpoint's 'KMNIST'" in fails(capsys, "test", *other)
    make("FashionMNIST")
    data = MNISTDataModule(dataset="FashionMNIST", data_dir="data", batch_size=16)
    (path,) = Path().rglob("last.ckpt")
    for run in ("fit", "test"):
        with pytest.raises(InputError, match="was trained on 'KMNIST', here the data set is 'FashionMNIST'"):
            getattr(trainer(), run)(MNISTClassifier(32), data, ckpt_path=path, weights_only=True)


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_of_version_0_1_0_is_one_of_mnist(capsys: pytest.CaptureFixture[str], make: Callable) -> None:
    make("KMNIST")
    main(["fit", "--trainer.max_epochs", "1", "--model.hidden_size", "8", "--trainer.limit_train_batches", "3"])
    (path,) = Path().rglob("last.ckpt")
    checkpoint = load_checkpoint(path)
    for part, names in (
        ("hyper_parameters", ["image_shape", "num_classes"]),
        ("datamodule_hyper_parameters", ["dataset", "emnist_split"]),
        ("MNISTDataModule", ["dataset"]),
    ):
        for name in names:
            del checkpoint[part][name]
    torch.save(checkpoint, path)
    config = path.parent.parent / "config.yaml"
    kept = [
        line
        for line in config.read_text().splitlines()
        if line.split(":")[0].strip() not in ("dataset", "download", "emnist_split")
    ]
    config.write_text("\n".join(kept))
    capsys.readouterr()
    assert "contradicts the checkpoint's 'MNIST'" in fails(capsys, "test", *flags("KMNIST", Path("data")))
    for command in ("test", "predict"):
        main([command])
    main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2"])
    assert "Epoch 2/2" in capsys.readouterr().out


# ------------------------------------------------------------------ odd files

DAMAGES: dict[str, Any] = {
    "missing": None,
    "empty": lambda content: b"",
    "header alone": lambda content: content[:8],
    "truncated": lambda content: content[:-1],
    "longer": lambda content: content + b"0",
    "huge numbers": lambda content: content[:4] + b"\xff" * 12 + content[16:],
    "rank 255": lambda content: content[:3] + b"\xff" + content[4:],
    "no format": lambda content: b"<!doctype html>" * 9,
    "wrong type": lambda content: content[:2] + b"\x0d" + content[3:],
}


@pytest.mark.parametrize("damage", [*DAMAGES, "folder", "pipe"])
@pytest.mark.parametrize("name", SETS[1:])
def test_odd_files_are_refused_in_one_line_and_nothing_is_made(
    name: str, damage: str, make: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    given, row = make(name), DATASETS[name]
    for file in (row.train[0], row.test[-1]):
        path = Path("data") / row.folder / file
        content = path.read_bytes()
        path.unlink()
        if damage == "folder":
            path.mkdir()
        elif damage == "pipe":
            os.mkfifo(path)
        elif DAMAGES[damage]:
            path.write_bytes(DAMAGES[damage](content))
        line = fails(capsys, "fit", *SHORT, *given)
        assert f"no {name} in " in line
        assert file in line
        assert "--data.download true" in line
        assert ("is missing" in line) == (damage == "missing")
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        path.write_bytes(content)


@pytest.mark.parametrize("name", ["FashionMNIST", "CIFAR10", "KMNIST"])
def test_altered_bytes_are_refused(name: str, make: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    given, row = make(name, packed=name != "CIFAR10"), DATASETS[name]
    path = next((Path("data") / row.folder).glob(f"{row.train[0]}*"))
    content = path.read_bytes()
    if path.suffix == ".gz" and name == "FashionMNIST":  # packed anew, by another program
        path.write_bytes(gzip.compress(gzip.decompress(content), 9))
        loaded(name, Path("data"))
        content = gzip.compress(gzip.decompress(content)[:-1] + b"x")
    else:
        content = content[:-10] + b"x" + content[-9:]
    path.write_bytes(content)
    assert "not the original" in fails(capsys, "fit", *SHORT, *given)


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("known", [False, True], ids=["of unknown checksum", "even in the table"])
def test_a_pickle_that_would_run_code_runs_none(
    known: bool, make: Callable, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given, row = make("CIFAR100"), DATASETS["CIFAR100"]
    content = pickle.dumps({"data": Evil(), "fine_labels": [0]})
    (Path("data") / row.folder / "train").write_bytes(content)
    if known:
        checksums = {**row.checksums, "train": hashlib.md5(content).hexdigest()}
        monkeypatch.setitem(DATASETS, "CIFAR100", dataclasses.replace(row, checksums=checksums))
    line = fails(capsys, "fit", *SHORT, *given)
    assert ("system" in line) == known
    assert not Path("pwned").exists()


def test_a_pickle_without_a_checksum_is_not_read(make: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    make("CIFAR10")
    monkeypatch.setitem(DATASETS, "CIFAR10", dataclasses.replace(DATASETS["CIFAR10"], checksums={}))
    with pytest.raises(InputError, match="data_batch_1 has no checksum in the table"):
        load_images("CIFAR10", "data", train=True)


@pytest.mark.parametrize(
    ("name", "images", "labels", "message"),
    [
        (
            "KMNIST",
            np.zeros((3, 28, 28), np.uint8),
            np.array([0, 1, 10], np.uint8),
            "labels from 0 to 10 for 10 classes",
        ),
        ("KMNIST", np.zeros((3, 28, 28), np.uint8), np.zeros(2, np.uint8), r"labels .* \(2,\) for 3 images"),
        ("KMNIST", np.zeros((3, 27, 28), np.uint8), np.zeros(3, np.uint8), r"images of uint8 and shape \(3, 27, 28\)"),
        ("KMNIST", np.zeros((0, 28, 28), np.uint8), np.zeros(0, np.uint8), "images of uint8"),
        ("KMNIST", np.zeros((3, 28, 28), np.int32), np.zeros(3, np.uint8), "images of >i4"),
        ("EMNIST letters", np.zeros((2, 28, 28), np.uint8), np.array([0, 1], np.uint8), "labels from -1 to 0 for 26"),
        ("EMNIST letters", np.zeros((2, 28, 28), np.uint8), np.array([1, 27], np.uint8), "labels from 0 to 26 for 26"),
        ("QMNIST", np.zeros((2, 28, 28), np.uint8), np.array([1, 2], np.int32), "do not fit together"),
    ],
)
def test_files_without_a_checksum_are_looked_through(
    name: str, images: np.ndarray, labels: np.ndarray, message: str, make: Callable
) -> None:
    make(name)
    for file, values in zip(DATASETS[name].train, (images, labels), strict=True):
        (Path("data") / DATASETS[name].folder / file).write_bytes(idx(values))
    with pytest.raises(InputError, match=message):
        load_images(name, "data", train=True)


# ------------------------------------------------------------------ download


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a server on this machine, and the folder that it gives."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/", folder
        running.shutdown()
        thread.join()


@pytest.fixture
def served(server: tuple[str, Path], make: Callable, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small files of KMNIST and CIFAR10 that torchvision downloads from this machine; the folder that they are in."""
    address, folder = server
    make("KMNIST", packed=True)
    make("CIFAR10")
    for file in Path("data/KMNIST/raw").iterdir():
        shutil.move(file, folder)
    md5 = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    monkeypatch.setattr(theirs.KMNIST, "resources", list(md5.items()))
    monkeypatch.setattr(theirs.KMNIST, "mirrors", [address])
    with tarfile.open(folder / "cifar.tar.gz", "w:gz") as archive:
        archive.add("data/cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(theirs.CIFAR10, "url", f"{address}cifar.tar.gz")
    monkeypatch.setattr(theirs.CIFAR10, "tgz_md5", hashlib.md5((folder / "cifar.tar.gz").read_bytes()).hexdigest())
    row, lists = DATASETS["CIFAR10"], ("train_list", "test_list")
    for name, files in zip(lists, (row.train, row.test), strict=True):
        monkeypatch.setattr(theirs.CIFAR10, name, [[file, row.checksums[file]] for file in files])
    shutil.rmtree("data")
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["KMNIST", "CIFAR10"])
def test_download_fetches_what_is_missing_and_proves_it(
    name: str, served: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = flags(name, Path("data"))
    assert "is missing" in fails(capsys, "fit", *SHORT, *given)
    main(["fit", *SHORT, *given, "--data.download", "true"])
    assert "not proven" not in capsys.readouterr().out
    data = loaded(name, Path("data"))
    assert data.proven
    assert np.array_equal(data.train_dataset.images, pattern(name, train=True)[0])
    shutil.rmtree(served)  # what is there is not fetched again
    main(["inspect", *given, "--data.download", "true"])
    main(["test"])


@pytest.mark.filterwarnings("ignore")  # torchvision leaves a connection open
@pytest.mark.parametrize("odd", ["gone", "other bytes"])
@pytest.mark.parametrize("name", ["KMNIST", "CIFAR10"])
def test_a_download_that_fails_is_one_line(
    name: str, odd: str, served: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in served.iterdir():
        if odd == "gone":
            file.unlink()
        else:
            file.write_bytes(b"odd")
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *SHORT, *flags(name, Path("data")), "--data.download", "true"])
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1
    assert f"{name} cannot be downloaded into 'data': " in lines[0]
    assert not list(Path("data").glob("*lock*"))
    gc.collect()
    assert not Path("lightning_logs").exists()


# ------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--data.dataset FashionMNIST", "dataset FashionMNIST needs data_dir"),
        ("--data.dataset Fashion", "--data.dataset cannot be Fashion"),
        ("--data.dataset EMNIST --data.data_dir .", "emnist_split must be one of balanced, byclass"),
        ("--data.dataset CIFAR10 --data.emnist_split letters --data.data_dir .", "emnist_split must be left out"),
        ("--data.download true", "download needs data_dir"),
        ("--data.dataset KMNIST --data.data_dir . --data.val_size 200", "val_size must be a count from 0 to 199"),
        ("--data.dataset KMNIST --data.data_dir . --data.val_size x", "val_size"),
        ("--data.dataset KMNIST --data.data_dir . --data.train_size 201", "train_size must be a count from 1 to 200"),
        ("--data.dataset KMNIST --data.data_dir . --model.num_classes 3", "num_classes"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    args: str, message: str, make: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    if "val_size" in args or "train_size" in args:
        make("KMNIST")
        args = args.replace("data_dir .", "data_dir data")
    assert message in fails(capsys, "fit", *args.split())


@pytest.mark.parametrize("name", ["KMNIST", "MNIST"])
def test_a_fraction_is_held_out_of_as_many_images_as_there_are(name: str, make: Callable) -> None:
    make(name)
    data = loaded(name, Path("data"), val_size=0.25, train_size=100)
    assert (data.num_val, data.num_train, data.num_test) == (50, 100, 50)
    train, val = data.split()
    assert len(train) == 100
    assert not set(train) & set(val)


def test_the_split_of_images_that_were_never_counted_is_not_guessed(make: Callable) -> None:
    make("KMNIST")
    with pytest.raises(RuntimeError, match=r"call setup\(\) first"):
        MNISTDataModule(dataset="KMNIST", data_dir="data").split()


class OldNetwork(MNISTClassifier):
    """A subclass as users have written it, which knows nothing of shapes."""

    def __init__(self, hidden_size: int = 16) -> None:
        super().__init__(hidden_size)


@pytest.mark.filterwarnings("ignore")
def test_a_network_without_the_new_parameters_goes_on_working(
    make: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["fit", *SHORT[:4], *make("KMNIST")], model_class=OldNetwork)
    main(["test"], model_class=OldNetwork)
    assert "image_shape" in Path("lightning_logs/version_0/hparams.yaml").read_text()  # the base class's
    for name, has in (("CIFAR10", "image_shape (1, 28, 28), and CIFAR10 has (3, 32, 32)"), ("EMNIST letters", "26")):
        args = ["fit", *SHORT[:4], *make(name)]
        capsys.readouterr()
        line = fails(capsys, *args, model_class=OldNetwork)
        assert "OldNetwork has " in line
        assert has in line


@pytest.mark.parametrize(
    "arguments",
    [
        *({"image_shape": value} for value in ((28, 28), "1x28", 784, (1, 28, 0), (1, 2.5, 3), (1, "2", 3))),
        *({"num_classes": value} for value in (0, 2.5, "10", 65_537)),
        {"image_shape": (3, 1024, 1024), "hidden_size": 65_536},
    ],
    ids=repr,
)
def test_a_shape_that_no_network_could_have_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^({'|'.join(arguments)}) (must be|65,536 is too large)") as caught:
        MNISTClassifier(**arguments)
    assert len(str(caught.value).splitlines()) == 1


# ------------------------------------------------------------------ the table


def test_the_table_is_torchvision_s() -> None:
    names = [f"EMNIST {split}" if name == "EMNIST" else name for name in get_args(Name) for split in get_args(Split)]
    assert set(DATASETS) == set(names)
    assert set(get_args(Split)) == set(theirs.EMNIST.splits)
    for name, row in DATASETS.items():
        assert row.source.__name__ == name.split()[0]
        assert len(set(row.classes)) == len(row.classes)
        assert all(len(checksum) in (32, 64) for checksum in row.checksums.values())
    sizes = {name: len(row.classes) for name, row in DATASETS.items() if name.startswith("EMNIST")}
    assert sizes == {
        "EMNIST byclass": 62,
        "EMNIST bymerge": 47,
        "EMNIST balanced": 47,
        "EMNIST letters": 26,
        "EMNIST digits": 10,
        "EMNIST mnist": 10,
    }
    assert len(DATASETS["CIFAR100"].classes) == 100
    assert list(DATASETS["CIFAR100"].classes) == sorted(DATASETS["CIFAR100"].classes)


# ------------------------------------------------------------------ real files


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist: see scripts/README.md")
def test_the_tutorials_network_learns_the_real_fashion_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data/FashionMNIST").mkdir(parents=True)
    Path("data/FashionMNIST/raw").symlink_to(DEBIAN)
    main(["fit", *flags("FashionMNIST", Path("data"))])
    main(["test"])
    report = json.loads(Path("lightning_logs/version_0/report.json").read_text())
    assert 0.85 < report["accuracy"] < 0.90
    assert report["classes"][7]["class"] == "Sneaker"
