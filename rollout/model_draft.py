"""A small model guesses for a large one (arXiv 2211.17192, 2302.01318).

Shape letters: R sequences, n slots of a pass of the large model, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.exchange.condition import Conditions
from common.models.backbone import Backbone
from common.models.filters import FilterConfig
from rollout.inverse_cdf import draw
from rollout.speculation import GUESS, Checked, Rows, at_places
from rollout.window_stepper import WindowStepper


@dataclass(frozen=True, slots=True)
class Draft:
    """The small model, and how far it guesses ahead."""

    backbone: Backbone
    tokens: int = 4
    conditions: Conditions | None = None
    """What labels stand for, where that is not what they stand for to the large model."""


class ModelDraft:
    """`Proposals` of another model, with the same filters and without guidance: a student has
    learned the guided distribution. The last slot of a pass is drawn without a guess."""

    def __init__(
        self, draft: Draft, filters: FilterConfig, conditions: Conditions | None, length: int
    ) -> None:
        self._ahead = min(draft.tokens, length)
        self.width = self._ahead + 1
        self._stepper = WindowStepper(draft.backbone, filters, None, draft.conditions or conditions)

    def begin(self, rows: Rows, prefix: int) -> None:
        given_Rn = rows.before(torch.zeros_like(rows.at_R), prefix)
        self._stepper.begin(rows.label_R, given_Rn, self.width)

    def propose(self, rows: Rows) -> Tensor:
        # The last code may not have been read: when all were kept, nobody asked for the next.
        start_R = (rows.at_R - 1).clamp_min(0)
        place_R1 = (rows.at_R - start_R)[:, None]
        said_R2V = self._stepper.logprobs(rows.before(start_R, 2), start_R)
        found = [at_places(said_R2V, place_R1)]
        for ahead in range(self._ahead):
            slot_R = rows.at_R + ahead
            if ahead:
                found.append(self._stepper.logprobs(rows.before(slot_R, 1), slot_R))
            rows.write(slot_R, draw(found[-1], rows.uniform(GUESS, slot_R, 1)))
        return torch.cat([*found, torch.full_like(found[0], -torch.inf)], 1)

    def learn(self, rows: Rows, checked: Checked) -> None:
        """It learns from what is in `rows`."""

    def keep(self, chosen_R: Tensor) -> None:
        self._stepper.keep(chosen_R)


def instead_of_guesses(sampling: object) -> str | None:
    """What of a `SamplingConfig` decides itself what is read in a pass, by its key; None: nobody
    does, so that a draft may guess."""
    for key in ("flow", "decoding.zipar", "decoding.sjd"):
        value: object = sampling
        for name in key.split("."):
            value = getattr(value, name, None)
        if value is not None:
            return key
    return None
