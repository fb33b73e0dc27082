"""A stranger's loops around the two classes: by hand, Lightning's, Fabric's, in one process and in several."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from torch.utils.data import DataLoader, DistributedSampler

from mnist_lightning import MNISTClassifier, MNISTDataModule

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),  # no images held out
]


def loaded(stage: str = "fit", **kwargs: Any) -> MNISTDataModule:
    data = MNISTDataModule(**kwargs)
    data.setup(stage)
    return data


def orders(passes: int, loader: Any) -> list[list[int]]:
    return [torch.cat([targets for _, targets in loader]).tolist() for _ in range(passes)]


def expected(data: MNISTDataModule, epochs: Any) -> list[list[int]]:
    return [data.train_dataset.targets[data.train_order(epoch)].tolist() for epoch in epochs]


@pytest.mark.parametrize("fabric", [False, True])
def test_each_pass_of_a_loop_of_ones_own_is_the_next_epoch(fabric: bool) -> None:
    data = loaded(train_size=300, seed=5)
    loader: Any = data.train_dataloader()
    if fabric:
        loader = Fabric(accelerator="cpu", devices=1).setup_dataloaders(loader)
    assert orders(3, loader) == expected(data, (0, 1, 2))
    firsts = [next(iter(loader))[1].tolist() for _ in range(2)]  # a pass may stop early
    assert firsts == [order[:128] for order in expected(data, (3, 4))]


def test_an_epoch_that_is_told_holds() -> None:
    data = loaded(train_size=300, seed=5)
    loader: Any = data.train_dataloader()
    orders(1, loader)
    for epoch in (7, 0):
        loader.sampler.set_epoch(epoch)
        assert orders(2, loader) == expected(data, (epoch, epoch))


@pytest.mark.parametrize("reload", [0, 1])
@pytest.mark.parametrize("by", ["loaders", "datamodule"])
def test_a_trainer_and_one_that_resumes_take_the_epochs_in_turn(
    by: str, reload: int, trainer: Callable, kept: Any, tmp_path: Path
) -> None:
    data = loaded(train_size=300, val_size=100)
    ckpt_path: Path | None = None
    for epochs in (range(2), range(2, 4)):
        model, made = kept(), trainer(max_epochs=epochs.stop, reload_dataloaders_every_n_epochs=reload)
        given = (data,) if by == "datamodule" else (data.train_dataloader(), data.val_dataloader())
        made.fit(model, *given, ckpt_path=ckpt_path)
        assert model.all("train")[1].tolist() == list(chain(*expected(data, epochs)))
        ckpt_path = tmp_path / "a.ckpt"
        made.save_checkpoint(ckpt_path)


def test_a_step_and_a_predict_step_train_and_evaluate_in_a_plain_loop() -> None:
    torch.manual_seed(0)
    data, model = loaded(train_size=1_000, val_size=500), MNISTClassifier(32)
    optimizer = model.configure_optimizers()
    for _ in range(3):
        for batch_idx, batch in enumerate(data.train_dataloader()):
            optimizer.zero_grad()
            model.training_step(batch, batch_idx).backward()
            optimizer.step()
    for batch_idx, batch in enumerate(data.val_dataloader()):
        model.validation_step(batch, batch_idx)
    right = [model.predict_step(batch, 0).argmax(1) == batch[1] for batch in data.val_dataloader()]
    assert torch.cat(right).float().mean() == model.val_metrics.acc.compute() > 0.7


def test_a_loader_that_no_trainer_has_asked_for_is_divided_by_the_user(trainer: Callable) -> None:
    data = loaded(train_size=300)
    trainer(limit_train_batches=1).fit(MNISTClassifier(8), datamodule=data)  # which stays attached
    whole = data.train_dataloader()
    assert (whole.batch_size, len(whole), len(whole.sampler)) == (128, 3, 300)
    seen = []
    for rank in (0, 1):
        sampler: Any = DistributedSampler(whole.dataset, num_replicas=2, rank=rank)
        share = DataLoader(whole.dataset, whole.batch_size, sampler=sampler, collate_fn=whole.collate_fn)
        assert [len(targets) for _, targets in share] == [128, 22]
        seen += [image.numpy().tobytes() for images, _ in share for image in images]
    assert len(set(seen)) == len(seen) == 300


PROJECT = """
import json, sys
from lightning.fabric import Fabric
from lightning.pytorch import Callback, Trainer
from mnist_lightning import MNISTClassifier, MNISTDataModule

data = MNISTDataModule(train_size=300, val_size=100)
data.setup("fit")
number = {image.numpy().tobytes(): index for index, image in enumerate(data.train_dataset.images)}

def numbers(batch):
    return [number[(image * 255).round().byte().numpy().tobytes()] for image in batch[0]]

def write(rank, epochs):
    with open(f"seen-{rank}.json", "w") as file:
        json.dump(epochs, file)

class Seen(Callback):
    epochs = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.epochs.append([])

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.epochs[-1].append(numbers(batch))

    def on_train_end(self, trainer, pl_module):  # a spawned process gives nothing else back
        write(trainer.global_rank, self.epochs)

if __name__ == "__main__":
    way, strategy = sys.argv[1:]
    if way == "fabric":
        fabric = Fabric(accelerator="cpu", devices=2, strategy=strategy)
        fabric.launch()
        loader = fabric.setup_dataloaders(data.train_dataloader())
        write(fabric.global_rank, [[numbers(batch) for batch in loader] for epoch in range(2)])
    else:
        given = [data] if way == "data" else [data.train_dataloader(), data.val_dataloader()]
        trainer = Trainer(accelerator="cpu", devices=2, strategy=strategy, max_epochs=2, callbacks=[Seen()],
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
        trainer.fit(MNISTClassifier(8), *given)
"""


@pytest.mark.skipif(os.name != "posix", reason="gloo with local processes is tested on POSIX")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "strategy", "sizes"),
    [
        ("data", "ddp", [64, 64, 22]),
        ("data", "ddp_spawn", [64, 64, 22]),
        ("loaders", "ddp", [128, 22]),  # divided as all others are
        ("fabric", "ddp", [128, 22]),
    ],
)
def test_two_processes_share_the_images_of_each_epoch(
    way: str, strategy: str, sizes: list[int], tmp_path: Path
) -> None:
    (tmp_path / "project.py").write_text(PROJECT)
    command = [sys.executable, "project.py", way, strategy]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in (0, 1))
    for epoch, (a, b) in enumerate(zip(first, second, strict=True)):
        assert [len(batch) for batch in a] == [len(batch) for batch in b] == sizes
        assert sorted(chain(*a, *b)) == list(range(300))
        if way == "data":  # the batches of one process, in its order
            order = np.random.default_rng((0, epoch)).permutation(300).tolist()
            assert list(chain(*(one + other for one, other in zip(a, b, strict=True)))) == order
    assert first[0] != first[1]
