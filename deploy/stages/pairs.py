"""Proof that a dataset holds pairs: the noise of a row's seed is carried to its tokens again.

Shape letters: n checked rows, A views, L slots.
"""

from pathlib import Path

import torch

from common.artifacts.model_file import ModelFile
from common.data.tokens import TokenDataset, read_header
from common.device import precision
from common.errors import InputError
from common.exchange.condition import Conditions
from common.tokenization.codes import flow_codes
from deploy.report.grids import spread
from rollout.sampler import SamplingConfig, sample

CHECKED = 4
"""Rows, taken evenly."""


def require_pairs(
    path: Path,
    dataset: TokenDataset,
    teacher: ModelFile,
    sampling: SamplingConfig,
    conditions: Conditions,
) -> None:
    """Carry the noise of some rows of the file at `path` anew, on the CPU.

    Another machine rounds otherwise, and one token that flips changes those behind it, so a single
    row that is the same is enough: of foreign seeds none is.

    Raises:
        InputError: not one row is the same, or there are no seeds.
    """
    if dataset.seed_N is None:
        raise InputError(
            f"{path}: has no column seed, so the noise that its tokens come from is not known; "
            "make it again with `varkd generate`"
        )
    row_n = torch.tensor(spread(len(dataset), min(CHECKED, len(dataset))))
    model = teacher.load(precision(str(read_header(path).facts.get("dtype", "float32"))))
    seeds = dataset.seed_N[row_n].tolist()
    label_n, codes = dataset.label_N[row_n].long(), flow_codes(teacher.tokenizer)
    drawn = sample(model, label_n, seeds, sampling, conditions=conditions, codes=codes)
    same_n = (drawn.cell_BL == dataset.token_NAL[row_n, 0]).all(1)
    if not same_n.any():
        raise InputError(
            f"{path}: the seeds of rows {', '.join(map(str, row_n.tolist()))} give other tokens "
            "than are stored with them, so these are no pairs; make it again with `varkd generate`"
        )
