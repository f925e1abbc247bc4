"""What objectives with rewards have in common in their config."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, model_validator

from common.config.quantities import Weight
from learner.objective import ObjectiveConfig
from learner.rewards import AdvantageConfig


class RewardedConfig(ObjectiveConfig):
    """A policy gradient of rewards, whose ratio of probabilities is 1 where nothing has changed:
    the student is trained without dropout, as it was sampled."""

    with_dropout: ClassVar[bool] = False

    rewards: dict[str, Weight] = Field(default={"teacher_logprob": 1.0}, min_length=1)
    """Weights by name of what [scorers] write of whole rows, e.g. decoded_mse=1."""
    per_token: bool = False
    """Credit every token with its own share of the rewards, where scorers tell it (a patch decoder
    draws every code in one place): the same mean, less noise."""
    advantage: AdvantageConfig = AdvantageConfig()
    """How much better than its group a row did."""
    clip: Weight = 0.2
    """PPO's clipping of the ratio to [1 - clip, 1 + clip]; 0 switches it off."""

    @model_validator(mode="before")
    @classmethod
    def _keep_defaults_of_advantages(cls, values: Any) -> Any:
        """advantage.std=none alone changes no clip: the objective's own default stays."""
        given = values.get("advantage") if isinstance(values, dict) else None
        if not isinstance(given, Mapping):
            return values
        default = cls.model_fields["advantage"].default.model_dump()
        return {**values, "advantage": {**default, **given}}

    def rewarded(self) -> Mapping[str, float]:
        return self.rewards
