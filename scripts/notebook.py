"""Makes ``first_look.ipynb`` of ``first_look.py``: it runs each cell, and keeps what the cell prints and shows.

python scripts/notebook.py
"""

import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

SCRIPT = Path(__file__).with_name("first_look.py")
NOTEBOOK = SCRIPT.with_suffix(".ipynb")


def notebook_of(script: str) -> Any:
    """A notebook with the cells of a script, before they are run."""
    cells = []
    for markdown, text in re.findall(
        r"^# %%( \[markdown\])?\n(.*?)(?=^# %%|\Z)", script, flags=re.MULTILINE | re.DOTALL
    ):
        lines = text.strip().splitlines()
        if markdown:
            cells.append(new_markdown_cell("\n".join(line[2:] for line in lines)))
        else:
            cells.append(new_code_cell("\n".join(lines)))
        cells[-1].id = f"cell-{len(cells)}"  # nbformat's own are random
    return new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})


def run(notebook: Any, folder: str) -> Any:
    """Run all cells in a folder, and keep their outputs in the notebook."""
    place = {"metadata": {"path": folder}}
    return NotebookClient(notebook, timeout=600, resources=place, record_timing=False).execute()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        nbformat.write(run(notebook_of(SCRIPT.read_text("utf-8")), scratch), NOTEBOOK)
    print(f"wrote {NOTEBOOK}, {NOTEBOOK.stat().st_size / 1e6:.2f} MB")
