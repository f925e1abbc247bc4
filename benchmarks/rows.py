"""Sequences to score and to send, drawn at random."""

import torch

from common.exchange.trajectory import TrajectoryBatch
from common.models.plan import raster_plan
from common.spec import SequenceSpec


def sampled_rows(spec: SequenceSpec, rows: int) -> TrajectoryBatch:
    """As a worker makes them of a student's samples in raster order, before they are scored."""
    generator = torch.Generator().manual_seed(0)
    token_BL = torch.randint(spec.vocab_size, (rows, spec.length), generator=generator)
    row_B = torch.arange(rows)
    return TrajectoryBatch(
        spec=spec,
        id_B=row_B,
        version_B=torch.zeros_like(row_B),
        label_B=row_B % spec.num_classes,
        context=("student",) * rows,
        policy=("student",) * rows,
        law=("exact",) * rows,
        prefix_B=torch.zeros_like(row_B),
        plan=raster_plan(rows, spec.length),
        token_BL=token_BL,
        logprob_BL=-torch.rand(rows, spec.length, generator=generator),
    )
