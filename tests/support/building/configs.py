"""Every Config class that there is."""

import importlib.util
import pkgutil
import re
from functools import cache
from pathlib import Path

import common
import deploy
import learner
import rollout
import teacher_server
from common.config.schema import Config

PACKAGES = (common, rollout, teacher_server, learner, deploy)
TRAINS = "deploy.backend.train_job"
"""It imports Ray Train, for a second in every process of the suite."""


def declares_configs(module):
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    return re.search(r"^class \w+\([^)]*Config\b", Path(found.origin).read_text(), re.MULTILINE)


@cache
def all_configs():
    """Every Config class in the packages: plug-ins, sections, the study's."""
    for package in PACKAGES:
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name == TRAINS and not declares_configs(module.name):
                continue
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:
                if error.name != "triton":  # kernels of a GPU, which have no configs
                    raise

    def below(cls):
        for child in cls.__subclasses__():
            yield child
            yield from below(child)

    ours = {package.__name__ for package in PACKAGES}
    found = {c for c in below(Config) if c.__module__.split(".")[0] in ours}
    return sorted(found, key=lambda c: (c.__module__, c.__qualname__))
