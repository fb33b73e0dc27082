"""The losses: torch's, and that of Keras 2.2.4."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def keras_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of Keras 2.2.4 on TensorFlow, which is computed from probabilities.

    The probabilities are divided by their sum and clipped to [1e-7, 1 - 1e-7]. A clipped probability has
    no gradient (``keras.backend.tensorflow_backend.categorical_crossentropy``).

    Args:
        logits: ``(B, C)`` float.
        targets: ``(B,)`` int64 in 0 ... C-1.

    Returns:
        The mean over the batch, ``()``, in nats.
    """
    probabilities = logits.softmax(dim=1)
    probabilities = probabilities / probabilities.sum(dim=1, keepdim=True)
    clipped = probabilities.clamp(1e-7, 1 - 1e-7)
    return -clipped.gather(1, targets.unsqueeze(1)).log().mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "keras": keras_cross_entropy,
}
