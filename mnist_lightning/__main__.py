"""``python -m mnist_lightning``, the same as ``mnist-lightning``."""

from mnist_lightning.cli import command

if __name__ == "__main__":
    command()
