"""The layers of a network, for whoever looks into it: the report, the page to draw on, the line ``Network``."""

from math import prod

from torch import nn

from mnist_lightning.model.classifier import MNISTClassifier


def two_layers(module: nn.Module) -> tuple[nn.Linear, nn.Linear] | None:
    """The hidden layer and the output layer of the tutorial's network, or ``None`` for a network of another kind."""
    if not isinstance(module, MNISTClassifier):
        return None
    layers = [layer for layer in module.modules() if any(True for _ in layer.parameters(recurse=False))]
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    if len(layers) != 2 or len(linear) != 2:
        return None  # a subclass has replaced the network
    hidden, output = linear
    fits = hidden.in_features == prod(module.image_shape)
    return (hidden, output) if fits and output.weight.shape == (module.num_classes, hidden.out_features) else None
