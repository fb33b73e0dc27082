"""The batches of an epoch, and each process's share of them."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler, SequentialSampler

from mnist_lightning.data.dataset import Batch
from mnist_lightning.errors import InputError


class GlobalBatchSampler(DistributedSampler[np.ndarray], SequentialSampler):
    """The batches of an epoch: for each, the indices of the images that one process takes.

    The first batch is made of the first ``batch_size`` images of the order, the next one of the next
    ``batch_size``, and the last one of what is left. Several processes divide each of these batches
    among themselves: each takes a contiguous part, the parts differ by one image at most, and no
    image is taken twice. A process for which there is no image in a batch goes without that batch.

    It has two base classes to keep Lightning from replacing it. Lightning replaces any sampler but a
    ``DistributedSampler`` when there are several processes, and any but a ``SequentialSampler`` with
    ``overfit_batches``. Its replacements repeat images, and know nothing of whole batches. Lightning
    also calls ``set_epoch`` of a ``DistributedSampler`` before each epoch.

    Args:
        dataset: The dataset to sample from; only its length is used.
        batch_size: Images in a batch, over all processes together.
        order: Returns the order of an epoch: one index into ``dataset`` for each image.
        num_replicas: Number of processes.
        rank: The number of this process, from 0.
    """

    def __init__(
        self,
        dataset: Dataset[Batch],
        batch_size: int,
        order: Callable[[int], Sequence[int] | np.ndarray | Tensor],
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=False)
        self.batch_size = batch_size
        self.order = order

    def __len__(self) -> int:
        full, rest = divmod(len(self.dataset), self.batch_size)  # type: ignore[arg-type]  # Dataset has no __len__
        return full * (self.rank < self.batch_size) + (self.rank < rest)

    def __iter__(self) -> Iterator[np.ndarray]:  # type: ignore[override]  # a SequentialSampler yields single indices
        given = self.order(self.epoch)
        order = np.asarray(given.cpu() if isinstance(given, Tensor) else given)
        n = len(self.dataset)  # type: ignore[arg-type]  # Dataset has no __len__
        if order.shape != (n,) or order.dtype.kind not in "iu" or not 0 <= order.min() <= order.max() < n:
            raise InputError(
                f"the order of epoch {self.epoch} must be {n} indices from 0 to {n - 1}, "
                f"got shape {order.shape} of {order.dtype}"
            )
        order = np.ascontiguousarray(order, np.int64)
        batches = [order[start : start + self.batch_size] for start in range(0, n, self.batch_size)]
        if self.num_replicas > 1:  # a split into one part would change nothing, and cost 8 µs a batch
            batches = [np.array_split(batch, self.num_replicas)[self.rank] for batch in batches]
        return iter([batch for batch in batches if len(batch)])
