"""How the suite runs; the fixtures of all tests lie in `building.fixtures` and
`building.run_fixtures`."""

import os

import pytest
from building.processes import pytest_collection as pytest_collection
from building.processes import pytest_collection_finish as pytest_collection_finish
from building.processes import pytest_collection_modifyitems as pytest_collection_modifyitems
from building.processes import pytest_xdist_auto_num_workers as pytest_xdist_auto_num_workers
from building.processes import pytest_xdist_make_scheduler as pytest_xdist_make_scheduler
from building.processes import share

from deploy.backend.early_imports import ENVIRONMENT

QUICK = {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "2"}
os.environ.update(ENVIRONMENT | QUICK)  # a node that died is missed after a second, not fifteen


def pytest_configure(config: pytest.Config) -> None:
    """Load the fixtures, which import the product: not where tests are only handed to others, who
    would wait for that."""
    hands_on = config.option.dist != "no" and config.option.tx
    share(config)
    if not hands_on:
        config.pluginmanager.import_plugin("building.fixtures")
        config.pluginmanager.import_plugin("building.run_fixtures")
