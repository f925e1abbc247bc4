"""How the whole suite is shared between two processes; pytest calls these by name."""

import atexit
import gc
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


def share(config: pytest.Config) -> None:
    """How one process of several begins and ends; nothing for a process that is alone.

    The second collects the folders of `tests` in the other order: in a fresh checkout the
    assertions of each file are rewritten by whoever comes first, and that takes seconds. It takes
    some as well to part with all objects in the end, for which nobody has a use.
    """
    given: dict[str, Any] | None = getattr(config, "workerinput", None)
    if given is None:
        return
    atexit.register(os._exit, 0)  # registered first, it is called last
    if given["workerid"] == "gw1" and [Path(each).name for each in config.args] == ["tests"]:
        files = Path(config.args[0]).glob("*/test_*.py")
        config.args = sorted({str(file.parent) for file in files}, reverse=True)


def pytest_collection() -> None:
    """What is imported and collected stays: nothing of it is garbage to look for."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Nor is it looked at again while the tests run."""
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What may start Ray comes first: it is the longest work of one process. What needs the server
    of commands comes next, so that the other process alone spends seconds on its imports."""
    serving = {item.path for item in items if "server" in getattr(item, "fixturenames", ())}

    def turn(item: pytest.Item) -> tuple[int, Path]:
        if may_start_ray(item.path, item.name.partition("[")[0]):
            return 0, item.path.parent
        return 1 if item.path in serving else 2, item.path.parent

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
