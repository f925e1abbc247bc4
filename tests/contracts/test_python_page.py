"""The page for Python users and its notebook run as they stand, from nothing but themselves."""

import json

import pytest
from building.notebooks import NOTEBOOK, PAGE, cells_of, code_of, notebook_of


@pytest.mark.parametrize("cells", [code_of(PAGE), cells_of(NOTEBOOK)], ids=["page", "notebook"])
def test_every_cell_runs(cells):
    """One after the other in a fresh namespace, as a kernel does."""
    names = {"__name__": "__main__"}
    for number, cell in enumerate(cells, 1):
        exec(compile(cell, f"cell {number}", "exec"), names)
    assert names["guided"].token_BL.shape == (8, 16)
    assert not names["guided"].token_BL.equal(names["decoded"].token_BL)
    assert names["weights"].version == 1
    assert names["metrics"]["loss"] > 0
    assert names["losses"][-1] < names["losses"][0]


def test_the_notebook_has_the_pages_cells_and_no_outputs():
    """`python tests/support/building/notebooks.py` writes it anew."""
    notebook = json.loads(NOTEBOOK.read_text())
    assert notebook == notebook_of(PAGE)
    assert all(not cell.get("outputs") for cell in notebook["cells"])
