"""What a person looks at.

- ``figures.py``: every picture
- ``inspection.py``: the data, before training
- ``report.py``: what a test shows beyond one accuracy; ``report_callback.py`` collects the logits for it
- ``predictions.py``: ``predictions.csv``
"""
