"""Sequences in memory: what common/exchange/trajectory.py decodes a record to.

Shape letters: B sequences, L slots, D code width.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from common.exchange.provenance import DATA, Law, Policy, is_on_policy
from common.models.plan import DecodePlan
from common.spec import SequenceSpec

COLUMNS = ("signal", "sequence")
"""Fields that hold columns by name."""
OF_ROWS = ("group", "member", "teacher_condition", "seed", "history")
"""Optional columns of one number per row."""


@dataclass(frozen=True)
class TrajectoryBatch:
    """Sequences, who sampled them from which context, and what the teacher says about them."""

    spec: SequenceSpec
    id_B: Tensor
    version_B: Tensor
    label_B: Tensor
    context: tuple[str, ...]
    policy: tuple[Policy, ...]
    """Who sampled what follows the prefix of each row."""
    law: tuple[Law, ...]
    """Whether each row was drawn from the policy's own distribution."""
    prefix_B: Tensor
    plan: DecodePlan
    token_BL: Tensor
    logprob_BL: Tensor
    """Log-probability under the distribution that drew the token; 0 on slots that were given."""
    noise_BL: Tensor | None = None
    input_token_BL: Tensor | None = None
    """What a network reads in every slot where that differs from what it is asked for there
    (`token_BL`), e.g. a token that was perturbed. None: the same."""
    target_token_BL: Tensor | None = None
    """The data sequence that a row is compared with, where anything asks for it. None: nobody does,
    or the row is that sequence itself."""
    group_B: Tensor | None = None
    """Number of the condition of which a row is one of several samples. None: the row's id."""
    member_B: Tensor | None = None
    """Which of its group's samples a row is, from 0. None: the only one."""
    teacher_condition_B: Tensor | None = None
    """Id of what only the teacher knows of a row. None: it knows what the student knows."""
    seed_B: Tensor | None = None
    """What gives the Gaussian noise that was carried to a row's tokens; -1 where none was."""
    vector_BLD: Tensor | None = None
    """The code vectors that a one-pass student means by a row, of which `token_BL` are the nearest
    codes. None: those codes' own."""
    signal: dict[str, Tensor] = field(default_factory=dict)
    """Teacher columns by name, each (B, L, ...); `entropy` among them where anything reads it."""
    sequence: dict[str, Tensor] = field(default_factory=dict)
    """Numbers of whole sequences by name, each (B, ...): what a scorer says of a row."""
    facts: dict[str, str] = field(default_factory=dict)
    """Schema metadata beyond what the fields say: lease, generation, signal, head, seconds."""

    def __len__(self) -> int:
        return self.token_BL.shape[0]

    def scored(self, signal: dict[str, Tensor], facts: dict[str, str]) -> "TrajectoryBatch":
        return replace(self, signal=signal, facts=self.facts | facts)

    def rows(self, chosen: slice) -> "TrajectoryBatch":
        """A view of some rows."""
        cut = {
            f.name: getattr(self, f.name)[chosen]
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor | tuple)
        }
        plan = self.plan.rows(chosen)
        columns = {
            name: {key: value[chosen] for key, value in getattr(self, name).items()}
            for name in COLUMNS
        }
        return replace(self, plan=plan, **columns, **cut)

    def pinned(self) -> "TrajectoryBatch":
        """With the teacher's columns, the widest, in memory that a GPU copies from by itself."""
        signal = {name: value.pin_memory() for name, value in self.signal.items()}
        return replace(self, signal=signal)

    def to(self, device: torch.device) -> "TrajectoryBatch":
        """Elsewhere; what is pinned goes to a GPU while others compute there."""
        beside = device.type == "cuda"
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=beside)
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        columns = {
            name: {
                key: value.to(device, non_blocking=beside)
                for key, value in getattr(self, name).items()
            }
            for name in COLUMNS
        }
        return replace(self, **columns, **moved)

    @property
    def optional_columns(self) -> dict[str, Tensor]:
        """The columns that are there, of those that need not be, by their names in the record."""
        found = {
            "noise": self.noise_BL,
            "input_token": self.input_token_BL,
            "target_token": self.target_token_BL,
            "group": self.group_B,
            "member": self.member_B,
            "teacher_condition": self.teacher_condition_B,
            "seed": self.seed_B,
            "vector": self.vector_BLD,
            "history": self.plan.history_B,
        }
        return {name: value for name, value in found.items() if value is not None}

    @property
    def input_BL(self) -> Tensor:
        """What teacher and student read; what they are asked for is `token_BL`."""
        return self.token_BL if self.input_token_BL is None else self.input_token_BL

    @property
    def target_BL(self) -> Tensor:
        """The data sequence that a row is compared with; itself where it has none."""
        return self.token_BL if self.target_token_BL is None else self.target_token_BL

    @property
    def sources(self) -> tuple[tuple[str, Policy], ...]:
        """(context, policy) of every row."""
        return tuple(zip(self.context, self.policy, strict=True))

    @property
    def suffix_BL(self) -> Tensor:
        """True on slots at or after the prefix length."""
        slot_L = torch.arange(self.token_BL.shape[1], device=self.token_BL.device)
        return slot_L[None] >= self.prefix_B[:, None]

    def rows_where(self, matches: Callable[[Policy], bool]) -> Tensor:
        """True_B for rows whose policy matches."""
        flags = [matches(policy) for policy in self.policy]
        return torch.tensor(flags, device=self.token_BL.device)

    @property
    def data_B(self) -> Tensor:
        """True for rows that are whole ground-truth sequences."""
        return self.rows_where(lambda policy: policy == DATA)

    @property
    def on_policy_B(self) -> Tensor:
        """True for rows that the student sampled."""
        return self.rows_where(is_on_policy)

    @property
    def rollout_BL(self) -> Tensor:
        """True on slots that the student sampled."""
        return self.suffix_BL & self.on_policy_B[:, None]


def concatenate(batches: list[TrajectoryBatch]) -> TrajectoryBatch:
    """Join batches that share spec and step sizes; facts are those of the first.

    Input and target tokens that only some have are filled with the tokens; what else only some have
    is an error of whoever made the batches.
    """
    if any(batch.input_token_BL is not None for batch in batches):
        batches = [replace(batch, input_token_BL=batch.input_BL) for batch in batches]
    if any(batch.target_token_BL is not None for batch in batches):
        batches = [replace(batch, target_token_BL=batch.target_BL) for batch in batches]
    first = batches[0]
    if any(b.spec != first.spec or b.plan.step_sizes != first.plan.step_sizes for b in batches):
        raise ValueError("only batches of one spec and one plan geometry can be joined")
    if len(batches) == 1:
        return first

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(batch, name) for batch in batches])

    def listed(name: str) -> tuple[str, ...]:
        return tuple(value for batch in batches for value in getattr(batch, name))

    of_rows = {
        f.name: joined(f.name) if isinstance(getattr(first, f.name), Tensor) else listed(f.name)
        for f in fields(first)
        if isinstance(getattr(first, f.name), Tensor | tuple)
    }
    return replace(
        first,
        plan=DecodePlan.joined([batch.plan for batch in batches]),
        **{
            name: {
                key: torch.cat([getattr(batch, name)[key] for batch in batches])
                for key in getattr(first, name)
            }
            for name in COLUMNS
        },
        **of_rows,
    )
