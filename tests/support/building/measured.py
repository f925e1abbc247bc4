"""What single calls take, for processes of their own; `Server.call` runs them."""

import resource
from pathlib import Path

import torch

from common.artifacts.model_file import ModelFile
from common.errors import InputError
from common.files.pickled import read_pickle
from common.models.backbones.llamagen import Config
from common.spec import SequenceSpec

MODELS = {
    "wide": (Config(width=1024, depth=5, heads=16), SequenceSpec(8192, 256, (16, 16), 1000)),
    "narrow": (Config.tiny(), SequenceSpec(24, 6, (2, 3), 3)),
}


def loading(folder: Path, suffix: str, dtype: torch.dtype) -> tuple[int, int]:
    """(parameters, bytes that the process grew by) of loading the wide model of a folder; before
    that the narrow one, for the libraries' own pages come with their first use."""
    parameters = grown = 0
    for name, (config, spec) in reversed(MODELS.items()):
        file = ModelFile(folder / f"{name}{suffix}", "models.teacher", config, spec, Path("none"))
        before = _peak()
        parameters = sum(parameter.numel() for parameter in file.load(dtype).parameters())
        grown = _peak() - before
    return parameters, grown


def reading(path: Path) -> tuple[str, int]:
    """(refusal, bytes that the process grew by) of reading a pickled checkpoint."""
    before, said = _peak(), ""
    try:
        read_pickle(path)
    except InputError as error:
        said = str(error)
    return said, _peak() - before


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
