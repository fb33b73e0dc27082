"""The order of an epoch, and each process's share of its batches."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler, SequentialSampler

from mnist_lightning.data.dataset import Batch
from mnist_lightning.errors import InputError


class GlobalBatchSampler(DistributedSampler[int], SequentialSampler):
    """The order of an epoch, and one process's share of each of its batches.

    The batches are those of a single process: images ``0 ... batch_size-1`` of the order, then the
    next ``batch_size``, the rest last. Of each, every process takes a contiguous share; the shares
    differ by one image at most and none is ever repeated. Lightning leaves a
    ``DistributedSampler`` alone, where it would shuffle and shard any other sampler again, and
    tells it the epoch. With ``overfit_batches``, it leaves only a ``SequentialSampler`` alone: any
    other it replaces by one that repeats images, so that all processes have as many.

    Args:
        dataset: What is sampled; only its length counts.
        batch_size: Images in a batch over all processes together.
        order: Gives the order of an epoch: indices into ``dataset``, one for each image.
        num_replicas: Number of processes.
        rank: Which of them this is.
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

    def share(self, size: int) -> int:
        """How many images of a batch of this size this process takes."""
        return size // self.num_replicas + (self.rank < size % self.num_replicas)

    def __len__(self) -> int:
        full, rest = divmod(len(self.dataset), self.batch_size)  # type: ignore[arg-type]  # Dataset has no __len__
        return full * self.share(self.batch_size) + self.share(rest)

    def __iter__(self) -> Iterator[int]:
        given = self.order(self.epoch)
        order = np.asarray(given.cpu() if isinstance(given, Tensor) else given)
        n = len(self.dataset)  # type: ignore[arg-type]  # Dataset has no __len__
        if order.shape != (n,) or order.dtype.kind not in "iu" or not 0 <= order.min() <= order.max() < n:
            raise InputError(
                f"the order of epoch {self.epoch} must be {n} indices from 0 to {n - 1}, "
                f"got shape {order.shape} of {order.dtype}"
            )
        if self.num_replicas > 1:
            batches = np.split(order, range(self.batch_size, n, self.batch_size))
            order = np.concatenate([np.array_split(batch, self.num_replicas)[self.rank] for batch in batches])
        return iter(order.tolist())
