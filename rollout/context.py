"""Where a sequence's prefix comes from and who continues it: the mixture of context sources.

The paper's template (VarKD eqs. 2-6) is an expectation over prefixes; a context source is one
such prefix distribution, one file in rollout/contexts. The choice for image i is a pure function
of (run seed, i).

Shape letters: B sequences, L slots.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, SerializeAsAny, model_validator
from torch import Tensor

from common.config.plugins import PluginConfig, named_by_kind
from common.config.quantities import Weight
from common.config.schema import Config
from common.data.tokens import TokenDataset
from common.exchange.provenance import DATA, TEACHER, Law, Policy
from common.exchange.schedule import Schedule
from common.randomness import Draws
from common.spec import SequenceSpec
from rollout.sampler import SamplingConfig

SamplerName = Literal["student", "teacher"]


class ContextConfig(PluginConfig, ABC):
    ratio: Weight = 1.0
    """Relative weight in the mixture; the student's share of the total is the paper's lambda."""

    @property
    def sampler(self) -> SamplerName | None:
        """Who continues the prefix; None where whole sequences are read."""
        return None

    @property
    def way(self) -> str | None:
        """Who makes its rows in a worker: its sampler, slot by slot behind the prefix, unless it
        has a way of its own (rollout/forced.py)."""
        return self.sampler

    @property
    def policy(self) -> Policy:
        """Who samples what follows the prefix, also where that was done once for a file."""
        return self.sampler or (TEACHER if self.is_generated else DATA)

    def law(self, student: SamplingConfig) -> Law:
        """Whether rows come from the policy's own distribution; `student` is how that one draws."""
        drawn = student if self.sampler == "student" else self.teacher_sampling
        return law_of(drawn)

    @property
    def teacher_sampling(self) -> SamplingConfig | None:
        """How the teacher draws tokens in rollout workers; None where it does not."""
        return None

    @property
    def guesses(self) -> int:
        """How many codes the student guesses ahead where the teacher samples."""
        return 0

    @property
    def is_generated(self) -> bool:
        """Whether sequences are read from the teacher's token file instead of the data's."""
        return False

    @property
    def has_pairs(self) -> bool:
        """Whether its rows are tokens that Gaussian noise was carried to."""
        return False

    @abstractmethod
    def prefix(self, index: int, draws: Draws, *, spec: SequenceSpec, step: int) -> int:
        """Number of ground-truth slots of condition `index`; `spec.length` means all of them."""


def law_of(sampling: SamplingConfig | None) -> Law:
    """Of rows that are drawn so; None: nothing is drawn."""
    return "exact" if sampling is None or sampling.is_plain else "approximate"


class ContextsConfig(Config):
    renamed: ClassVar[Mapping[str, str]] = {"coin": "mix_per"}

    mix_per: Literal["step", "sample"] = "step"
    """Whether the source is drawn once per learner step (as TRL's GKD) or per image."""
    sources: Annotated[
        dict[str, SerializeAsAny[ContextConfig]],
        named_by_kind("rollout.contexts"),
        Field(min_length=1),
    ]
    """Tables by file name in rollout/contexts, e.g. sources.student.ratio=0.1."""
    anneal: Literal["none", "linear", "exponential", "sigmoid"] = "none"
    """Begin with data alone and end with the ratios (ImitKD). At step i of N, data alone weighs
    linear 1 - i/N, exponential 200^(-i/N), sigmoid 1 / (1 + e^(12 i/N - 6))."""

    @model_validator(mode="after")
    def _some_source_has_weight(self) -> "ContextsConfig":
        if self.total <= 0:
            raise ValueError("every ratio is 0; give at least one context source a weight")
        return self

    @model_validator(mode="after")
    def _annealing_starts_from_data(self) -> "ContextsConfig":
        if self.anneal != "none" and not self._of_data:
            raise ValueError(
                f"anneal is {self.anneal}, which begins with data alone, but there is no "
                "sources.data; add it (its ratio may be 0)"
            )
        return self

    @property
    def total(self) -> float:
        return math.fsum(source.ratio for source in self.sources.values())

    @property
    def used(self) -> list[ContextConfig]:
        """The sources that have a share."""
        return [source for source in self.sources.values() if source.ratio]

    @property
    def teacher_sampling(self) -> SamplingConfig | None:
        """How rollout workers sample from the teacher; None where they need no teacher."""
        found = [source.teacher_sampling for source in self.used]
        return next((sampling for sampling in found if sampling is not None), None)

    @property
    def _of_data(self) -> list[str]:
        """The sources of whole ground-truth sequences."""
        return [kind for kind, source in self.sources.items() if source.policy == DATA]

    def policies(self) -> dict[Policy, float]:
        """Probability of each policy among the sources; under annealing, what it ends with."""
        found: dict[Policy, float] = {}
        for kind, share in self.shares().items():
            policy = self.sources[kind].policy
            found[policy] = found.get(policy, 0.0) + share
        return found

    def shares(self) -> dict[str, float]:
        """Probability of each source, in a fixed order; under annealing, what it ends with."""
        return {kind: s.ratio / self.total for kind, s in sorted(self.sources.items())}

    def shares_at(self, progress: float) -> dict[str, float]:
        """Probability of each source when `progress` (0 to 1) of the steps are done.

        ImitKD's three schedules (arXiv 2009.07253, docs/method.md, "Baselines"); it leaves the
        sigmoid's steepness open, so 12 is our choice.
        """
        if self.anneal == "none":
            return self.shares()
        extra = {
            "linear": 1 - progress,
            "exponential": 200.0**-progress,
            "sigmoid": 1 / (1 + math.exp(12 * progress - 6)),
        }[self.anneal]
        data = self._of_data
        return {
            kind: (1 - extra) * share + extra * (kind in data) / len(data)
            for kind, share in self.shares().items()
        }

    def choose(self, index: int, draws: Draws, schedule: Schedule) -> str:
        """The context of image `index`; samples of one condition share it."""
        step = index // schedule.global_batch_size
        per_sample = schedule.condition(index)
        coin = draws.uniform("context", step if self.mix_per == "step" else per_sample)
        shares, reached = self.shares_at(step / schedule.steps), 0.0
        for kind, share in shares.items():
            reached += share
            if coin < reached:
                return kind
        return max(shares, key=lambda kind: shares[kind])  # rounding at the top end


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """What to sample for a block of images: all of it a pure function of (seed, index)."""

    id_B: Tensor
    label_B: Tensor
    """Labels after class dropout."""
    context: tuple[str, ...]
    policy: tuple[Policy, ...]
    law: tuple[Law, ...]
    way: tuple[str | None, ...]
    """Who makes each row (`ContextConfig.way`); None: the whole sequence is in cell_BL."""
    prefix_B: Tensor
    cell_BL: Tensor
    """Codes that are read, by grid position (not yet in plan order)."""
    seed_B: Tensor | None = None
    """Noise seeds of rows that are read with theirs, -1 of the others; None where no source has
    pairs of noise and tokens."""

    def rows_of(self, way: str) -> Tensor:
        """Numbers of the rows that are made so."""
        return torch.tensor([n for n, name in enumerate(self.way) if name == way]).long()

    def rows(self, chosen: Tensor) -> "RolloutRequest":
        """Some rows, in the given order."""
        numbers = chosen.tolist()
        return RolloutRequest(
            self.id_B[chosen],
            self.label_B[chosen],
            tuple(self.context[n] for n in numbers),
            tuple(self.policy[n] for n in numbers),
            tuple(self.law[n] for n in numbers),
            tuple(self.way[n] for n in numbers),
            self.prefix_B[chosen],
            self.cell_BL[chosen],
            None if self.seed_B is None else self.seed_B[chosen],
        )


def assign(
    contexts: ContextsConfig,
    indices: Sequence[int],
    *,
    draws: Draws,
    schedule: Schedule,
    data: TokenDataset,
    class_dropout: float,
    sampling: SamplingConfig,
    generated: TokenDataset | None = None,
    null: int | None = None,
) -> RolloutRequest:
    """Samples of one condition (by the schedule) get one data row, label, context and prefix;
    `sampling` is the student's, `generated` the teacher's sequences where a source reads them."""
    conditions = [schedule.condition(index) for index in indices]
    label_B, cell_BL = data.pick(conditions, draws, class_dropout, null)
    context = tuple(contexts.choose(index, draws, schedule) for index in indices)
    sources = [contexts.sources[kind] for kind in context]
    prefixes = [
        source.prefix(condition, draws, spec=data.spec, step=index // schedule.global_batch_size)
        for source, condition, index in zip(sources, conditions, indices, strict=True)
    ]
    work = RolloutRequest(
        torch.tensor(indices),
        label_B,
        context,
        policy=tuple(source.policy for source in sources),
        law=tuple(source.law(sampling) for source in sources),
        way=tuple(source.way for source in sources),
        prefix_B=torch.tensor(prefixes),
        cell_BL=cell_BL,
        seed_B=_pair_seeds(contexts, sources, indices, draws),
    )
    if not any(source.is_generated for source in sources):
        return work
    if generated is None:
        raise ValueError("a source reads the teacher's sequences, but there are none")
    own = replace(draws, images=len(generated))
    read_B = torch.tensor([source.is_generated for source in sources])
    return _with_generated(work, read_B, generated, conditions, own, class_dropout, null)


def _with_generated(
    work: RolloutRequest,
    read_B: Tensor,
    generated: TokenDataset,
    conditions: Sequence[int],
    draws: Draws,
    class_dropout: float,
    null: int | None,
) -> RolloutRequest:
    """With the teacher's labels, tokens and seeds in the rows that are read."""
    label_B, cell_BL = generated.pick(conditions, draws, class_dropout, null)
    seed_B = work.seed_B
    if seed_B is not None and generated.seed_N is not None:
        seed_B = torch.where(read_B, generated.pick_seeds(conditions, draws), seed_B)
    return replace(
        work,
        label_B=torch.where(read_B, label_B, work.label_B),
        cell_BL=torch.where(read_B[:, None], cell_BL, work.cell_BL),
        seed_B=seed_B,
    )


def _pair_seeds(
    contexts: ContextsConfig,
    sources: Sequence[ContextConfig],
    indices: Sequence[int],
    draws: Draws,
) -> Tensor | None:
    """`RolloutRequest.seed_B` where rows are sampled now; what is read has seeds of its own."""
    if not any(source.has_pairs for source in contexts.used):
        return None
    seeds = [draws.noise_seed(index) for index in indices]
    pairs_B = torch.tensor([source.has_pairs for source in sources])
    return torch.where(pairs_B, torch.tensor(seeds), -1)
