"""A teacher of three dependent codes that is a table, and rows of it and of a one-pass generator as
they reach a learner."""

import itertools

import torch
from torch import nn

from common.exchange.signals import guided_hidden
from common.exchange.trajectory import TrajectoryBatch
from common.models.backbones import llamagen
from common.models.generators import dd2_llamagen
from common.models.plan import raster_plan
from common.models.velocity_model import VelocityModel
from common.spec import SequenceSpec
from learner.teacher_targets import TeacherTargets

V = 5
SPEC = SequenceSpec(V, 3, (1, 3), num_classes=2)
CODE_VD = torch.randn(V, 2, generator=torch.Generator().manual_seed(0))
TABLE = 2.5 * torch.randn(2, V + 1, V + 1, V, generator=torch.Generator().manual_seed(1))
"""Logits of a code after the class and the two codes before it; V where there is none."""
EVERY = torch.tensor(list(itertools.product(range(V), repeat=3)))


def logprob(label_B, token_BL):
    """logprob_BLV of every code after those before it."""
    nothing_B1 = torch.full_like(token_BL[:, :1], V)
    before_BL = torch.cat([nothing_B1, token_BL[:, :-1]], 1)
    second_BL = torch.cat([nothing_B1, nothing_B1, token_BL[:, :-2]], 1)
    return TABLE[label_B[:, None], second_BL, before_BL].log_softmax(-1)


def drawn(label_B, generator):
    """token_BL of the teacher."""
    token_BL = torch.zeros(len(label_B), 3, dtype=torch.long)
    for slot in range(3):
        p_BV = logprob(label_B, token_BL)[:, slot].exp()
        token_BL[:, slot] = torch.multinomial(p_BV, 1, generator=generator)[:, 0]
    return token_BL


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
    return rows(first, label_B, drawn(label_B, torch.Generator().manual_seed(first)), "teacher")


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


def total_variation(token_BL, p_N):
    place_B = (token_BL * torch.tensor([V * V, V, 1])).sum(1)
    return float((torch.bincount(place_B, minlength=V**3) / len(token_BL) - p_N).abs().sum() / 2)


def independent(p_N):
    """Of the product of the true marginals: the best that slots alone can do."""
    marginals = [torch.zeros(V).double().index_add_(0, EVERY[:, k], p_N) for k in range(3)]
    product_N = torch.stack([m[EVERY[:, k]] for k, m in enumerate(marginals)]).prod(0)
    return float((product_N - p_N).abs().sum() / 2)
