"""Pages that become large under what they hold."""

import mmap
import re
import sys
from pathlib import Path

import pytest
import torch

from common.large_pages import LARGE_PAGE, enlarge


def large_bytes():
    """Of this process, in large pages that are nobody else's."""
    found = re.search(r"AnonHugePages:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
    return int(found[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is asked for large pages")
def test_pages_become_large_with_what_is_in_them():
    with mmap.mmap(-1, 4 * LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)  # some systems make all pages large by themselves
        value = torch.frombuffer(memory, dtype=torch.int64)
        torch.arange(len(value), out=value)
        memory.madvise(mmap.MADV_HUGEPAGE)
        before = large_bytes()
        found = enlarge(value.data_ptr() + LARGE_PAGE, LARGE_PAGE)
        grown = large_bytes() - before
        assert torch.equal(value, torch.arange(len(value)))
        del value
    if not found:
        pytest.skip("this kernel makes no large pages when asked")
    assert found <= 2
    assert grown >= LARGE_PAGE


@pytest.mark.parametrize(("address", "size"), [(0, 1), (0, 0), (LARGE_PAGE, -1)])
def test_what_is_not_there_is_left_alone(address, size):
    assert enlarge(address, size) == 0
