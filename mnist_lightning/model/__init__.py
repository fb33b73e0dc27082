"""The network and its training.

``classifier.py`` is the tutorial: the network, its steps and the constants of RMSprop. ``losses.py`` and ``metrics.py``
belong to it, and ``layers.py`` looks into a network. ``optimizer.py`` and ``linear.py`` only make it faster: skip them
at first.
"""

from mnist_lightning.model.classifier import MNISTClassifier
from mnist_lightning.model.layers import two_layers
from mnist_lightning.model.linear import OneDNNLinear, prefer_onednn
from mnist_lightning.model.losses import keras_cross_entropy
from mnist_lightning.model.optimizer import RMSprop

__all__ = ["MNISTClassifier", "OneDNNLinear", "RMSprop", "keras_cross_entropy", "prefer_onednn", "two_layers"]
