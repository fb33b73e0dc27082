"""Which images are in each batch of an epoch, and in each process's share of it."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch.distributed as distributed
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler, SequentialSampler

from mnist_lightning.data.dataset import Batch
from mnist_lightning.errors import InputError, shown


class GlobalBatchSampler(DistributedSampler[np.ndarray], SequentialSampler):
    """For each batch of an epoch, the indices of the images that one process takes.

    The first batch is made of the first ``batch_size`` images of the order, the next one of the next
    ``batch_size``, and the last one of what is left. Several processes divide each of these batches
    among themselves: each takes a contiguous part, the parts differ by one image at most, and no
    image is taken twice. If a batch has no image for a process, the process skips the batch.

    It has two base classes to keep Lightning from replacing it. Lightning replaces any sampler but a
    ``DistributedSampler`` when there are several processes, and any but a ``SequentialSampler`` with
    ``overfit_batches``. Its replacements repeat images, and know nothing of whole batches. Lightning
    also calls ``set_epoch`` of a ``DistributedSampler`` before each epoch.

    Args:
        dataset: The dataset to sample from; only its length is used.
        batch_size: Images in a batch, over all processes together.
        order: Returns the order of an epoch: one index into ``dataset`` for each image. By default, it is
            the dataset's own.
        num_replicas: Number of processes. By default, ``torch.distributed`` is asked when the batches, or
            their number, are needed: a loader may be made before the processes are connected.
        rank: The number of this process, from 0.
    """

    def __init__(
        self,
        dataset: Dataset[Batch],
        batch_size: int,
        order: Callable[[int], Sequence[int] | np.ndarray | Tensor] | None = None,
        num_replicas: int | None = None,
        rank: int = 0,
    ) -> None:
        super().__init__(dataset, num_replicas=1, rank=0, shuffle=False)
        self.batch_size = batch_size
        self.order = order
        self._given = None if num_replicas is None else (num_replicas, rank)
        self._told = False

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of all later passes. By default, each pass is the next epoch."""
        super().set_epoch(epoch)
        self._told = True

    def __len__(self) -> int:
        full, rest = divmod(len(self.dataset), self.batch_size)  # type: ignore[arg-type]  # Dataset has no __len__
        _, rank = self._given or connected_processes()
        return full * (rank < self.batch_size) + (rank < rest)

    def __iter__(self) -> Iterator[np.ndarray]:  # type: ignore[override]  # a SequentialSampler yields single indices
        epoch = self.epoch
        if not self._told:
            self.epoch += 1
        n = len(self.dataset)  # type: ignore[arg-type]  # Dataset has no __len__
        given = np.arange(n) if self.order is None else self.order(epoch)
        order = np.asarray(given.cpu() if isinstance(given, Tensor) else given)
        if order.shape != (n,) or order.dtype.kind not in "iu" or not 0 <= order.min() <= order.max() < n:
            raise InputError(
                f"the order of epoch {epoch} must be {n} indices from 0 to {n - 1}, "
                f"got {shown(order)} of shape {order.shape} and {order.dtype}"
            )
        order = np.ascontiguousarray(order, np.int64)
        batches = [order[start : start + self.batch_size] for start in range(0, n, self.batch_size)]
        count, rank = self._given or connected_processes()
        if count > 1:  # a split into one part would change nothing, and cost 8 µs a batch
            batches = [np.array_split(batch, count)[rank] for batch in batches]
        return iter([batch for batch in batches if len(batch)])


def connected_processes() -> tuple[int, int]:
    """The number of processes that ``torch.distributed`` connects, and the number of this one, from 0."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size(), distributed.get_rank()
    return 1, 0
