"""How the whole suite is shared between two processes; pytest calls these by name."""

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

MARKED = re.compile(r"@pytest\.mark\.ray\b.*?\ndef (test_\w+)", re.DOTALL)


def may_start_ray(path: Path, test: str) -> bool:
    """Whether a test is marked so; of the folder `ray` all are, whose files share runs."""
    return path.parent.name == "ray" or test in _marked(path)


@cache
def _marked(path: Path) -> frozenset[str]:
    """The functions of a file that are."""
    return frozenset(MARKED.findall(path.read_text()))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes for a folder of tests, this one for files and single tests."""
    whole = any(Path(argument).is_dir() for argument in config.args)
    return min(2, os.cpu_count() or 1) if whole else 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What may start Ray comes first: it is the longest work of one process. What needs the server
    of commands comes next, so that the other process alone spends seconds on its imports."""
    serving = {item.path for item in items if "server" in getattr(item, "fixturenames", ())}

    def turn(item: pytest.Item) -> int:
        if may_start_ray(item.path, item.name.partition("[")[0]):
            return 0
        return 1 if item.path in serving else 2

    items.sort(key=turn)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file is the work of one process, so that what its tests share is made once; all tests that
    may start Ray are the work of one process as well: one cluster at a time, never two."""
    from xdist.scheduler import LoadFileScheduling

    class RayAndFiles(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            is_ray = may_start_ray(config.rootpath / file, test.partition("[")[0])
            return "ray" if is_ray else file

    return RayAndFiles(config, log)
