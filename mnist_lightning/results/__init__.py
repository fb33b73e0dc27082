"""What a person looks at.

``inspection.py`` shows the data, ``curves.py`` the training, ``report.py`` a test, and ``readings.py`` pictures of
handwriting; ``predictions.py`` writes ``predictions.csv``. ``draw_page.py`` and ``export.py`` hand the network on.
"""

from mnist_lightning.results.report import Mistake, Report

__all__ = ["Mistake", "Report"]
