"""What a training leaves, and how it goes on: ``Run`` reads a run of the past."""

from mnist_lightning.runs.run import Run

__all__ = ["Run"]
