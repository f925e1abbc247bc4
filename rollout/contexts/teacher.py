"""Sequences that the teacher samples: SeqKD and SeqKD++ (docs/method.md, "Baselines").

SeqKD trains on whole samples of the teacher: min_prefix = max_prefix = 0, drawn once
(`source = "dataset"`) or anew each time. SeqKD++ on the teacher's continuations of ground-truth
prefixes: min_prefix = 0.25 and max_prefix = 0.75, online. The loss is on what the teacher sampled,
with the objective's branch for data.
"""

from typing import Literal, Self

from pydantic import model_validator

from common.config.quantities import Count, CountOrNone, Probability
from common.exchange.provenance import Law
from rollout.context import SamplerName, law_of
from rollout.model_draft import instead_of_guesses
from rollout.prefix import PrefixDistribution
from rollout.sampler import SamplingConfig


class Config(PrefixDistribution):
    min_prefix: Probability = 0.0
    """Shortest ground-truth prefix as a fraction of the sequence; 0 is SeqKD."""
    max_prefix: Probability = 0.0
    """Longest prefix as a fraction of the sequence; SeqKD++ has 0.25 and 0.75."""
    source: Literal["online", "dataset"] = "online"
    """online: rollout workers hold the teacher and sample; dataset: sequences are read that
    `varkd generate` has sampled once."""
    sampling: SamplingConfig = SamplingConfig()
    """How the teacher draws tokens; independent of teacher.guidance, which is the target's."""
    draft_tokens: CountOrNone = 0
    """online: how many codes the worker's student guesses ahead for the teacher, which keeps or
    mends them so that the sequences have its own law (docs/method.md, "Speculative decoding"); both
    must be LlamaGens. 0: it draws slot by slot alone."""
    sequences: Count | None = None
    """Size of the dataset; by default as many as there are training images."""

    @model_validator(mode="after")
    def _datasets_hold_whole_samples(self) -> Self:
        if self.source == "dataset" and self.max_prefix > 0:
            raise ValueError(
                "source is dataset, which holds whole samples of the teacher, but max_prefix is "
                f"{self.max_prefix}; leave min_prefix and max_prefix at 0, or set source to online"
            )
        return self

    @model_validator(mode="after")
    def _guesses_can_be_checked(self) -> Self:
        if self.draft_tokens and self.source == "dataset":
            raise ValueError(
                f"draft_tokens is {self.draft_tokens}, but source is dataset, which was sampled "
                "before; set generate.draft for `varkd generate`, and draft_tokens to 0"
            )
        if self.draft_tokens and (key := instead_of_guesses(self.sampling)):
            raise ValueError(
                f"draft_tokens is {self.draft_tokens}, but sampling has {key}, which decides "
                "itself what is read in a pass; leave one of the two out"
            )
        return self

    @property
    def guesses(self) -> int:
        return self.draft_tokens

    @property
    def sampler(self) -> SamplerName | None:
        return None if self.is_generated else "teacher"

    @property
    def teacher_sampling(self) -> SamplingConfig | None:
        return None if self.is_generated else self.sampling

    def law(self, student: SamplingConfig) -> Law:
        return law_of(self.sampling)  # of the dataset as well: `varkd generate` draws so

    @property
    def is_generated(self) -> bool:
        return self.source == "dataset"

    @property
    def has_pairs(self) -> bool:
        return self.sampling.flow is not None
