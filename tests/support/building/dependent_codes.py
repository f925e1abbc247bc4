"""A teacher of three dependent codes that is a table, and rows of it and of a one-pass generator as
they reach a learner."""

import torch
from torch import nn

from benchmarks.tabular import Tabular
from common.exchange.signals import guided_hidden
from common.exchange.trajectory import TrajectoryBatch
from common.models.backbones import llamagen
from common.models.generators import dd2_llamagen
from common.models.plan import raster_plan
from common.models.velocity_model import VelocityModel
from learner.teacher_targets import TeacherTargets

V = 5
TABLE = Tabular(codes=V, spread=2.5, seed=26)
SPEC, CODE_VD, logprob = TABLE.spec, TABLE.codes.code_VD, TABLE.logprob


def targets():
    """Whoever reads the teacher: what it sends are the log-probabilities themselves."""
    head = nn.Linear(V, V, bias=False)
    head.weight.data.copy_(torch.eye(V))
    return TeacherTargets(guided_hidden.Config(), head, "table")


def rows(first, label_B, token_BL, policy, **columns):
    """Scored rows of images `first` and on."""
    count = len(label_B)
    fields = {"version_B": torch.zeros(count, dtype=torch.long), **columns}
    return TrajectoryBatch(
        spec=SPEC,
        id_B=torch.arange(first, first + count),
        label_B=label_B,
        context=(policy,) * count,
        policy=(policy,) * count,
        law=("exact",) * count,
        prefix_B=torch.zeros(count, dtype=torch.long),
        plan=raster_plan(count, 3),
        token_BL=token_BL,
        logprob_BL=torch.zeros(count, 3),
        signal={"hidden": logprob(label_B, token_BL)},
        facts={"head": "table"},
        **fields,
    )


def taught(first, count):
    """Rows that the teacher sampled."""
    label_B = torch.arange(count) % 2
    return rows(
        first, label_B, TABLE.sample(label_B, torch.Generator().manual_seed(first)), "teacher"
    )


@torch.no_grad()
def generated(model, first, count, version=0):
    """Rows that a generator made, with the ids as seeds."""
    label_B, seed_B = torch.arange(count) % 2, torch.arange(first, first + count)
    made = model.generate(label_B, seed_B.tolist())
    columns = {"seed_B": seed_B, "vector_BLD": made.vector_BLD}
    version_B = torch.full((count,), version)
    return rows(first, label_B, made.token_BL, "student", version_B=version_B, **columns)


def fresh(seed=0, **head):
    """A network that nothing taught yet."""
    sizes = llamagen.Config(width=32, depth=2, heads=2, multiple_of=16, dropout=0.0)
    config = dd2_llamagen.Config(backbone=sizes, **({"head_width": 32, "head_depth": 2} | head))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built = config.build(SPEC, CODE_VD)
    assert isinstance(built, VelocityModel)
    return built
