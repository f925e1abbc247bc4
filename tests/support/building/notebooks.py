"""The code of a page, and a notebook of the same cells.

`python tests/support/building/notebooks.py` writes docs/notebooks/first_steps.ipynb anew from
docs/python.md.
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE, NOTEBOOK = ROOT / "docs/python.md", ROOT / "docs/notebooks/first_steps.ipynb"
FENCE = re.compile(r"^```python\n(.*?)^```\n", re.S | re.M)


def code_of(page: Path) -> list[str]:
    """The page's Python blocks, in order."""
    return FENCE.findall(page.read_text())


def cells_of(notebook: Path) -> list[str]:
    """The notebook's code cells, in order."""
    cells = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def notebook_of(page: Path) -> dict:
    """Text and code of a page as cells without outputs."""
    cells = []
    for number, part in enumerate(FENCE.split(page.read_text())):
        lines = part.strip("\n").splitlines(keepends=True)
        cell = {"id": f"cell-{number}", "metadata": {}, "source": lines}
        if number % 2:
            cells.append({"cell_type": "code", "execution_count": None, "outputs": [], **cell})
        elif lines:
            # Links of the page are relative to docs/.
            cell["source"] = [re.sub(r"\]\((?=\w+\.md)", "](../", line) for line in lines]
            cells.append({"cell_type": "markdown", **cell})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


if __name__ == "__main__":
    NOTEBOOK.write_text(json.dumps(notebook_of(PAGE), indent=1, ensure_ascii=False) + "\n")
