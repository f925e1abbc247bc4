"""What a sampler makes of guided logits before it draws: temperature, top-k, top-p, in this order
(docs/backbones.md, "LlamaGen sampling").

Shape letters: B sequences, n slots in the current step, V vocabulary; ... leading axes.
"""

import torch
from pydantic import field_validator
from torch import Tensor

from common.config.quantities import CodesOrAll, SomeProbability, Temperature
from common.config.schema import Config
from common.models.top_p import top_p_rules


class FilterConfig(Config):
    temperature: Temperature = 1.0
    """Divides the logits."""
    top_k: CodesOrAll = 0
    """Keep the k largest logits and their ties; 0 keeps all."""
    top_p: SomeProbability = 1.0
    """Keep the likeliest tokens that together reach probability p; 1 keeps all (VAR writes 0)."""
    top_p_rule: str = "llamagen"
    """Whose rule decides at the edge, by the name that a family declares: llamagen drops from the
    top where more than p comes before, var from the bottom while no more than 1 - p is gone."""

    @field_validator("top_p_rule")
    @classmethod
    def _some_family_has_the_rule(cls, value: str) -> str:
        if value not in (known := top_p_rules()):
            raise ValueError(f"is no rule; choose one of {', '.join(sorted(known))}")
        return value

    @property
    def is_filtered(self) -> bool:
        """Whether anything is changed."""
        return self.temperature != 1 or self.top_k > 0 or self.top_p < 1


def filtered_logprob(logit_BnV: Tensor, filters: FilterConfig) -> Tensor:
    """Normalised log-probabilities of the distribution that is drawn from; -inf where removed."""
    return filtered_logit(logit_BnV, filters).log_softmax(-1)


def filtered_logit(logit_BnV: Tensor, filters: FilterConfig) -> Tensor:
    """The same up to a constant for each slot."""
    logit = logit_BnV if filters.temperature == 1 else logit_BnV / filters.temperature
    if 0 < filters.top_k < logit.shape[-1]:
        threshold = logit.topk(filters.top_k, dim=-1).values[..., -1:]
        logit = logit.masked_fill(logit < threshold, -torch.inf)
    if filters.top_p < 1:
        dropped = top_p_rules()[filters.top_p_rule](logit, filters.top_p)
        logit = logit.masked_fill(dropped, -torch.inf)
    return logit
