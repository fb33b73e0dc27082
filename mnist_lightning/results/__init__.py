"""What a person looks at.

    >>> from mnist_lightning.results import Report

- ``inspection.py``: the data, before training
- ``report.py``: what a test shows beyond one accuracy; ``report_callback.py`` collects the logits for it
- ``predictions.py``: ``predictions.csv``
- ``pictures.py``: ``pictures.csv`` and ``pictures.png``
- ``figures.py``: every other picture
- ``draw_page.py``: a page to draw on, from ``draw.template.html``
- ``export.py``: the network for other programs
"""

from mnist_lightning.results.report import Mistake, Report

__all__ = ["Mistake", "Report"]
