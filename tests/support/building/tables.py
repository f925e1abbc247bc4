"""Models that are tables, small enough that every sequence can be enumerated."""

import itertools

import torch

from common.exchange.trajectory import TrajectoryBatch
from common.models.plan import DecodePlan
from common.spec import SequenceSpec


class Table:
    """One row of logits for every prefix shorter than `length`; float64."""

    def __init__(self, seed, codes, length, sharp=1.0):
        generator = torch.Generator().manual_seed(seed)
        self.codes, self.length = codes, length
        self.sequences = torch.tensor(list(itertools.product(range(codes), repeat=length)))
        self.rows = [
            (sharp * torch.randn(codes**t, codes, generator=generator, dtype=torch.double))
            for t in range(length)
        ]
        for rows in self.rows:
            rows.requires_grad_()

    def logprob_BLV(self, token_BL=None):
        """The distributions along sequences, by default all."""
        token_BL = self.sequences if token_BL is None else token_BL
        number_B, found = torch.zeros(len(token_BL), dtype=torch.long), []
        for t, rows in enumerate(self.rows):
            found.append(rows[number_B].log_softmax(-1))
            number_B = number_B * self.codes + token_BL[:, t]
        return torch.stack(found, 1)

    def logprob_BL(self, token_BL=None):
        """log q of the codes of sequences, by default all."""
        token_BL = self.sequences if token_BL is None else token_BL
        return self.logprob_BLV(token_BL).gather(-1, token_BL[..., None])[..., 0]

    def probability_B(self):
        """Of every sequence."""
        return self.logprob_BL().sum(1).exp()

    def grad(self, value):
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, self.rows)])


def rollouts(token_BL, behaviour_BL, codes, *, group=None, **columns):
    """Sequences that a student sampled; `group` rows each are of one condition."""
    rows, length = token_BL.shape
    index_B = torch.arange(rows)
    groups = {} if group is None else {"group_B": index_B // group, "member_B": index_B % group}
    return TrajectoryBatch(
        spec=SequenceSpec(codes, length, (1, length), 1),
        id_B=index_B,
        version_B=torch.zeros_like(index_B),
        label_B=torch.zeros_like(index_B),
        context=("student",) * rows,
        policy=("student",) * rows,
        law=("exact",) * rows,
        prefix_B=torch.zeros_like(index_B),
        plan=DecodePlan(torch.arange(length).expand(rows, -1), (1,) * length),
        token_BL=token_BL,
        logprob_BL=behaviour_BL.detach(),
        facts={} if group is None else {"group_size": str(group)},
        **groups,
        **columns,
    )
