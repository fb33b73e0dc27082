"""Which images are in each batch of an epoch, and in each process's share of it."""

from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler, SequentialSampler

from mnist_lightning.data.dataset import Batch, MNISTDataset, collate
from mnist_lightning.errors import InputError, shown

Order = Callable[[int], Sequence[int] | np.ndarray | Tensor]
"""For an epoch, counted from 0, one index into the dataset for each of its images."""


def make_loader(
    dataset: Dataset[Any], batch_size: int, order: Order | None, trainer: Trainer | None, **options: Any
) -> DataLoader[Batch]:
    """A loader like any other, of whole batches.

    If a Trainer asks for it, its processes share each batch, and the pixels are moved to its device. Otherwise the
    loader is not divided: Fabric, accelerate or a sampler of the user's does that. Without an ``order``, it is the
    dataset's own. The ``options`` are ``num_workers`` and ``pin_memory``.
    """
    processes = 1
    sampler: Any = SequentialSampler(dataset) if order is None else EpochSampler(dataset, order)  # type: ignore[arg-type]  # has a length
    if trainer is not None:
        processes = trainer.world_size
        if processes > 1:
            if trainer.training:
                check_processes(len(sampler), batch_size, processes)
            batch_size = max(batch_size // processes, 1) * processes  # an evaluation may take other batches
            sampler = SharedSampler(sampler, batch_size, processes, trainer.global_rank)
        if isinstance(dataset, MNISTDataset):
            dtype: Any = trainer.lightning_module.dtype
            # A worker has no GPU, and only pixels of the CPU can be pinned.
            device = torch.device("cpu") if any(options.values()) else trainer.strategy.root_device
            dataset = dataset.to(device, dtype)
    return DataLoader(
        dataset,
        batch_size=batch_size // processes,
        sampler=sampler,
        collate_fn=collate,
        # Each pass draws a seed for the workers: not from the random numbers of the model.
        generator=_OwnGenerator(),
        **options,
    )


def check_processes(images: int, batch_size: int, processes: int) -> None:
    """Refuse batches that processes cannot share so that each has an image of the last one, too."""
    if batch_size % processes:
        raise InputError(
            f"batch_size is the batch of all processes together and must be a multiple of their number: "
            f"{batch_size} cannot be shared evenly by {processes} processes"
        )
    if 0 < images % batch_size < processes:
        raise InputError(
            f"the last batch of an epoch has {images % batch_size} images, too few for {processes} processes; "
            "choose another batch_size, val_size or train_size"
        )


class EpochSampler(Sampler[int]):
    """The images in an order that each epoch may change.

    Each pass is the next epoch. Once :meth:`set_epoch` was called, as a Trainer does, the epoch stays as it was set.
    """

    def __init__(self, dataset: Sized, order: Order) -> None:
        self.dataset = dataset
        self.order = order
        self.epoch = 0
        self._told = False

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of all later passes."""
        self.epoch = epoch
        self._told = True

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        epoch, n = self.epoch, len(self)
        if not self._told:
            self.epoch += 1
        given = self.order(epoch)
        order = np.asarray(given.cpu() if isinstance(given, Tensor) else given)
        if order.shape != (n,) or order.dtype.kind not in "iu" or not 0 <= order.min() <= order.max() < n:
            raise InputError(
                f"the order of epoch {epoch} must be {n} indices from 0 to {n - 1}, "
                f"got {shown(order)} of shape {order.shape} and {order.dtype}"
            )
        return iter(order.tolist())


class SharedSampler(DistributedSampler[int], SequentialSampler):
    """One process's contiguous part of every batch of another sampler: several processes then compute what one does.

    The parts of the last batch differ by one image at most, and no image is taken twice. ``batch_size`` is that of all
    processes together, a multiple of their number.

    It has two base classes to keep Lightning from replacing it by one that repeats images: it does so with any sampler
    but a ``DistributedSampler`` if there are several processes, and a ``SequentialSampler`` for ``overfit_batches``.
    """

    def __init__(self, sampler: Any, batch_size: int, processes: int, rank: int) -> None:
        super().__init__(sampler, num_replicas=processes, rank=rank, shuffle=False)
        self.sampler = sampler
        self.batch_size = batch_size

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the other sampler, if it has any."""
        if isinstance(self.sampler, EpochSampler):
            self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        full, rest = divmod(len(self.sampler), self.batch_size)
        return (full * self.batch_size + rest + self.num_replicas - 1 - self.rank) // self.num_replicas

    def __iter__(self) -> Iterator[int]:
        order = [*self.sampler]
        for start in range(0, len(order), self.batch_size):
            yield from np.array_split(order[start : start + self.batch_size], self.num_replicas)[self.rank].tolist()


class _OwnGenerator(torch.Generator):
    """A generator that another process makes anew: torch 2.14 cannot send the state of one to a spawned process."""

    def __reduce__(self) -> Any:
        return type(self), ()
