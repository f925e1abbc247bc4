"""Decoding step by step: guidance, and sequences that join later, over any backbone.

Shape letters: B sequences, L slots, n slots in the current step, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from common.exchange.condition import ClassConditions, Conditions
from common.models.backbone import Backbone, DecodeState
from common.models.guidance import Guidance, guide
from common.models.plan import DecodePlan


class Stepper:
    """One decoding state; under guidance every sequence is followed by its twin under the null
    condition, which shares its tokens.

    The table of conditions says which id the null one is, and what the backbone is given for ids.
    The first `rows` sequences begin at step `first`, by default all; `admit` lets in the others.
    """

    def __init__(
        self,
        backbone: Backbone,
        label_B: Tensor,
        guidance: Guidance | None,
        plan: DecodePlan,
        given_BL: Tensor,
        first: int = 0,
        conditions: Conditions | None = None,
        *,
        rows: int | None = None,
    ) -> None:
        table = conditions or ClassConditions(backbone.spec.num_classes)
        self._backbone, self._plan, self._given_BL = backbone, plan, given_BL
        self._scales = guidance.scales(plan, backbone.guidance_rule) if guidance else ()
        self._guided = any(scale != 1 for scale in self._scales)
        if self._guided:
            label_B = torch.stack([label_B, torch.full_like(label_B, table.null)], 1).flatten()
        self._condition_B = table.resolve(label_B)
        self._rows = len(given_BL) if rows is None else rows
        self._state = self._begin(0, self._rows, first)
        self._joining: DecodeState | None = None

    def _begin(self, start: int, stop: int, step: int) -> DecodeState:
        copies, order_BL = 1 + self._guided, self._plan.order_BL[start:stop]
        return self._backbone.begin(
            self._condition_B[copies * start : copies * stop],
            replace(self._plan, order_BL=order_BL.repeat_interleave(copies, 0)),
            given_BL=self._given_BL[start:stop].repeat_interleave(copies, 0),
            step=step,
        )

    def admit(self, rows: int) -> None:
        """Let sequences in, up to the first `rows`, with what is given of them before this step."""
        if rows > self._rows:
            self._joining = self._begin(self._rows, rows, self._state.step)
            self._rows = rows

    def logits(self) -> Tensor:
        """Guided logit_BnV of the current step, float32."""
        backbone = self._backbone
        if backbone.token_steps is not None:  # which give logits
            return self._guide(self._of_all(backbone.predict).float())
        h_BnC = self._of_all(backbone.step_features)
        # Before the head, which is linear: half the rows for it.
        return backbone.head(self._guide(h_BnC).to(h_BnC.dtype)).float()

    def _of_all(self, read: Callable[[DecodeState], Tensor]) -> Tensor:
        """What is read in all sequences, those too that join here."""
        found = read(self._state)
        if self._joining is not None:
            found = torch.cat([found, read(self._joining)])
            self._state = self._backbone.join(self._state, self._joining)
            self._joining = None
        return found

    def _guide(self, both: Tensor) -> Tensor:
        if not self._guided:
            return both
        return guide(both[0::2], both[1::2], self._scales[self._state.step])

    def commit(self, token_Bn: Tensor) -> None:
        token_Bn = token_Bn.repeat_interleave(2, 0) if self._guided else token_Bn
        self._backbone.commit(self._state, token_Bn)
