"""Decode a batch with a backbone: pure functions, no processes.

Every slot of every image has its own uniform, so a sequence depends on its noise and on the
weights alone, not on who shares the batch; and the same noise under two decoders is comparable.

Shape letters: B sequences, L slots, n slots in the current step, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import field_validator
from torch import Tensor

from common.config.quantities import CodesOrAll, SomeProbability, Temperature
from common.config.schema import Config
from common.errors import Diverged
from common.exchange.condition import ClassConditions, Conditions
from common.finite import is_finite
from common.models.backbone import Backbone
from common.models.decoding import AnyDecoding, DecodingConfig
from common.models.guidance import Guidance, guide
from common.models.plan import DecodePlan
from common.models.top_p import top_p_rules


class SamplingConfig(Config):
    """Guidance, temperature, top-k, top-p, in this order (docs/backbones.md, "LlamaGen
    sampling")."""

    guidance: Guidance | None = None
    """Classifier-free guidance, a scale or a table; without it the conditional model runs alone."""
    decoding: AnyDecoding = DecodingConfig()
    """The order, as far as the model's family leaves a choice."""
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
    def is_plain(self) -> bool:
        """Whether codes come from the model's own conditional distribution."""
        filtered = self.top_k > 0 or self.top_p < 1
        exact = self.decoding.is_exact and not filtered
        return exact and self.guidance is None and self.temperature == 1


@dataclass(frozen=True, slots=True)
class Decoded:
    """token_BL and the log-probability of each draw (0 on given slots).

    Under approximate decoding (ZipAR) it is the one that the token was drawn with, from the cells
    decoded by then: not the backbone's probability in raster order, by which it is scored.
    """

    plan: DecodePlan
    token_BL: Tensor
    logprob_BL: Tensor

    @property
    def cell_BL(self) -> Tensor:
        """The tokens by grid position."""
        return self.plan.to_grid(self.token_BL)


def noise(seeds: Sequence[int], length: int, device: torch.device | str = "cpu") -> Tensor:
    """float64 uniforms noise_BL in [0, 1), one CPU generator per image."""
    generator = torch.Generator()
    rows = [
        torch.rand(length, generator=generator.manual_seed(seed), dtype=torch.float64)
        for seed in seeds
    ]
    return torch.stack(rows).to(device)


def sample(
    backbone: Backbone,
    label_B: Tensor,
    seeds: Sequence[int],
    sampling: SamplingConfig,
    *,
    order_seeds: Sequence[int] | None = None,
    cell_BL: Tensor | None = None,
    prefix_B: Tensor | None = None,
    conditions: Conditions | None = None,
) -> Decoded:
    """One sequence per label and seed, on the backbone's device: a function of weights, label and
    seed alone, which gives order and noise; `order_seeds` give the orders instead, where given.

    Labels are ids in the table `conditions`, by default the classes themselves. The first prefix_B
    slots of that order are copied from cell_BL (by grid position).

    Raises:
        InputError: `sampling` asks for what the family cannot do.
        Diverged: the logits are not finite.
    """
    device = next(backbone.parameters()).device
    plan = backbone.plan(order_seeds or seeds, sampling.decoding)
    return decode(
        backbone,
        label_B.to(device),
        sampling=sampling,
        noise_BL=noise(seeds, backbone.spec.length, device),
        plan=plan,
        given_BL=None if cell_BL is None else plan.to_slots(cell_BL).to(device),
        prefix_B=None if prefix_B is None else prefix_B.to(device),
        conditions=conditions,
    )


@torch.no_grad()  # not inference_mode: the learner differentiates through these tensors
def decode(
    backbone: Backbone,
    label_B: Tensor,
    *,
    sampling: SamplingConfig,
    noise_BL: Tensor,
    plan: DecodePlan,
    given_BL: Tensor | None = None,
    prefix_B: Tensor | None = None,
    conditions: Conditions | None = None,
) -> Decoded:
    """Sample one sequence per label, as `sample`; the first prefix_B slots are from given_BL.

    Decoding starts at the shortest prefix of the batch, in one prefill pass; sequences with a
    longer one keep their given tokens until it ends (docs/method.md, "Rollouts"). All is in the
    order of `plan`, noise as well, in whichever order slots are filled.
    """
    if given_BL is None or prefix_B is None:
        given_BL = torch.zeros_like(noise_BL, dtype=torch.long)
        prefix_B = torch.zeros_like(label_B)
    drawing = backbone.drawing_plan(plan, sampling.decoding, given=int(prefix_B.min()))
    first = drawing.step_of(int(prefix_B.min()))
    logprob_BL = torch.zeros(noise_BL.shape, device=label_B.device)
    if first == len(drawing.step_sizes):  # whole data sequences
        return Decoded(plan, given_BL.clone(), logprob_BL)
    slot_BL = plan.slots_in(drawing).to(label_B.device)
    noise_BL, given_BL = noise_BL.gather(1, slot_BL), given_BL.gather(1, slot_BL)
    is_given_BL, token_BL = slot_BL < prefix_B[:, None], given_BL.clone()
    stepper = Stepper(backbone, label_B, sampling.guidance, drawing, given_BL, first, conditions)
    for step in range(first, len(drawing.step_sizes)):
        slots = drawing.slots(step)
        logprob_BnV = filtered_logprob(stepper.logits(), sampling)
        drawn_Bn = draw(logprob_BnV, noise_BL[:, slots])
        is_given_Bn = is_given_BL[:, slots]
        token_BL[:, slots] = torch.where(is_given_Bn, given_BL[:, slots], drawn_Bn)
        chosen_Bn = logprob_BnV.gather(-1, token_BL[:, slots, None])[..., 0]
        logprob_BL[:, slots] = torch.where(is_given_Bn, 0.0, chosen_Bn)
        stepper.commit(token_BL[:, slots])
    _require_finite(logprob_BL)
    return Decoded(plan, *(of.gather(1, slot_BL.argsort(1)) for of in (token_BL, logprob_BL)))


def _require_finite(logprob_BL: Tensor) -> None:
    """Refuse a model whose logits are NaN, or too large to give a distribution.

    Once per batch, so that a device is waited for once.

    Raises:
        Diverged: in any step of any sequence.
    """
    if not is_finite(logprob_BL):
        raise Diverged(
            "the model's log-probabilities are not finite while it is sampled: its weights have "
            "diverged; take weights from before"
        )


class Stepper:
    """One decoding state; under guidance a doubled batch [labels; null] with shared tokens.

    The table of conditions says which id the null one is, and what the backbone is given for ids.
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
    ) -> None:
        table = conditions or ClassConditions(backbone.spec.num_classes)
        self._backbone = backbone
        self._scales = guidance.scales(plan, backbone.guidance_rule) if guidance else ()
        self._guided = any(scale != 1 for scale in self._scales)
        if self._guided:
            label_B = torch.cat([label_B, torch.full_like(label_B, table.null)])
            plan = replace(plan, order_BL=plan.order_BL.repeat(2, 1))
            given_BL = given_BL.repeat(2, 1)
        self._state = backbone.begin(table.resolve(label_B), plan, given_BL=given_BL, step=first)

    def logits(self) -> Tensor:
        """Guided logit_BnV of the current step, float32."""
        logit = self._backbone.predict(self._state).float()
        if not self._guided:
            return logit
        conditional, unconditional = logit.chunk(2)
        return guide(conditional, unconditional, self._scales[self._state.step])

    def commit(self, token_Bn: Tensor) -> None:
        self._backbone.commit(self._state, token_Bn.repeat(2 if self._guided else 1, 1))


def filtered_logprob(logit_BnV: Tensor, sampling: SamplingConfig) -> Tensor:
    """Normalised log-probabilities of the distribution that is drawn from; -inf where removed."""
    logit = logit_BnV / sampling.temperature
    if 0 < sampling.top_k < logit.shape[-1]:
        threshold = logit.topk(sampling.top_k, dim=-1).values[..., -1:]
        logit = logit.masked_fill(logit < threshold, -torch.inf)
    if sampling.top_p < 1:
        dropped = top_p_rules()[sampling.top_p_rule](logit, sampling.top_p)
        logit = logit.masked_fill(dropped, -torch.inf)
    return logit.log_softmax(-1)


def draw(logprob_BnV: Tensor, noise_Bn: Tensor) -> Tensor:
    """Inverse-CDF sampling in float64: one uniform per slot, exact for large vocabularies."""
    cdf_BnV = logprob_BnV.double().exp().cumsum(-1)
    target_Bn1 = noise_Bn[..., None].to(cdf_BnV) * cdf_BnV[..., -1:]
    index_Bn = torch.searchsorted(cdf_BnV, target_Bn1, right=True)[..., 0]
    return index_Bn.clamp_max(cdf_BnV.shape[-1] - 1)  # NaN is larger than all; `decode` refuses it
