"""What a raster model says of several slots of every sequence at once, each where it is: guidance
and filters over `Backbone.window`.

Shape letters: R sequences, n slots, L slots of a sequence, V vocabulary.
"""

import torch
from torch import Tensor

from common.errors import InputError
from common.exchange.condition import ClassConditions, Conditions
from common.models.backbone import Backbone
from common.models.filters import FilterConfig, filtered_logprob
from common.models.guidance import Guidance, guide
from common.models.key_value_cache import KeyValueCache


class WindowStepper:
    """Caches of a batch; under guidance every sequence is followed by its twin under the null
    condition. `begin` comes first."""

    def __init__(
        self,
        backbone: Backbone,
        filters: FilterConfig,
        guidance: Guidance | None,
        conditions: Conditions | None,
    ) -> None:
        """
        Raises:
            InputError: the family reads no windows.
        """
        if not backbone.reads_windows:
            raise InputError(
                f"a draft was given, but {type(backbone).__name__} does not decode slot by slot in "
                "raster order, so that nothing can be guessed ahead; leave the draft out"
            )
        self._backbone, self._filters = backbone, filters
        self._table = conditions or ClassConditions(backbone.spec.num_classes)
        plan = backbone.plan([0])
        scales = guidance.scales(plan, backbone.guidance_rule) if guidance else (1.0,)
        self._scale_L = torch.tensor(scales)
        self._copies = 1 + any(scale != 1 for scale in scales)
        self._caches: list[KeyValueCache] = []

    def begin(self, label_R: Tensor, token_Rn: Tensor, room: int) -> None:
        """Read what comes before slot n, with room for so many slots beyond a sequence."""
        if self._copies == 2:
            label_R = torch.stack([label_R, torch.full_like(label_R, self._table.null)], 1)
        self._condition_R = self._table.resolve(label_R.flatten())
        self._scale_L = self._scale_L.to(token_Rn.device)
        self._caches = self._backbone.window_caches(self._backbone.spec.length + room)
        if token_Rn.shape[1]:
            self._read(token_Rn, torch.zeros_like(token_Rn[:, 0]))

    def logprobs(self, token_Rn: Tensor, first_R: Tensor) -> Tensor:
        """logprob_RnV of what is drawn from in slots from first_R on; token_Rn lie one before."""
        h_RnC = self._read(token_Rn, first_R)
        if self._copies == 2:
            slot_Rn = first_R[:, None] + torch.arange(token_Rn.shape[1], device=first_R.device)
            scale_Rn = self._scale_L[slot_Rn.clamp_max(len(self._scale_L) - 1)]
            guided = guide(h_RnC[0::2], h_RnC[1::2], scale_Rn[..., None])  # before the linear head
            h_RnC = guided.to(h_RnC.dtype)
        return filtered_logprob(self._backbone.head(h_RnC).float(), self._filters)

    def keep(self, chosen_R: Tensor) -> None:
        """Go on with these sequences alone."""
        if self._copies == 2:
            chosen_R = torch.stack([2 * chosen_R, 2 * chosen_R + 1], 1).flatten()
        self._condition_R = self._condition_R[chosen_R]
        self._caches = [cache.rows(chosen_R) for cache in self._caches]

    def _read(self, token_Rn: Tensor, first_R: Tensor) -> Tensor:
        token_Rn, first_R = (of.repeat_interleave(self._copies, 0) for of in (token_Rn, first_R))
        return self._backbone.window(self._condition_R, token_Rn, first_R, self._caches)
