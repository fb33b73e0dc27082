"""The losses: torch's, and that of Keras 2.2.4."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def keras_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of Keras 2.2.4 on TensorFlow: of ``(B, C)`` float and ``(B,)`` int64, the mean in nats, ``()``.

    It is computed from probabilities, divided by their sum and clipped to [1e-7, 1 - 1e-7]. A clipped probability has
    no gradient (``keras.backend.tensorflow_backend.categorical_crossentropy``).
    """
    probabilities = logits.softmax(dim=1)
    probabilities = probabilities / probabilities.sum(dim=1, keepdim=True)
    clipped = probabilities.clamp(1e-7, 1 - 1e-7)
    return -clipped.gather(1, targets.unsqueeze(1)).log().mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cross_entropy": F.cross_entropy, "keras": keras_cross_entropy}
