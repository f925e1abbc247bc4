"""Compiled layers, as far as a machine without a GPU shows."""

import pytest

from common.errors import InputError
from learner.compiled import compile_layers


def test_a_machine_without_a_compiler_is_told(tiny, monkeypatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"learner\.compile is true.*learner\.compile=false"):
        compile_layers(tiny("llamagen"))
