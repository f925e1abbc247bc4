"""Texts to try."""

from hypothesis import strategies as st


def texts(max_size: int) -> st.SearchStrategy[str]:
    """Any text that UTF-8 can hold, as `st.text` has it, which takes two seconds to find out."""
    return st.text(st.characters(exclude_categories=("Cs",)), max_size=max_size)
