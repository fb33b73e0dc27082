"""What a training leaves, and how it goes on.

    >>> from mnist_lightning.runs import Run

- ``run.py``: a run of the past, to read from Python
- ``folder.py``: the folder of a run, claimed, locked and found again
- ``history.py``: ``metrics.csv``
- ``checkpoints.py``: when they are saved, and which one is the last
- ``resume.py``: what is checked before a run goes on
- ``seeds.py``: the random numbers of every epoch
- ``stopping.py``: EarlyStopping and SIGTERM
- ``progress.py``: the bar, and the line of every epoch
"""

from mnist_lightning.runs.run import Run

__all__ = ["Run"]
