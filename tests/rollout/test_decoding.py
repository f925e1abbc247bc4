"""Decoding against the slowest way to do it, and what it may not cost."""

from functools import partial

import pytest
import torch
from building.layered import layered
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from common.models.backbone import build_seeded
from common.models.backbones import arpg, llamagen
from common.models.filters import filtered_logprob
from common.models.guidance import Guidance
from common.models.plan import DecodePlan
from common.models.token_steps import token_steps
from common.spec import SequenceSpec
from rollout.sampler import SamplingConfig, decode, noise
from rollout.stepper import Stepper

FAMILIES = ("llamagen", "var", "arpg")


def reference(backbone, label_B, sampling, noise_BL, plan, given_BL, prefix_B):
    """One sequence at a time, a whole pass for every step, and the first code whose cumulative
    probability is above the uniform."""
    rows = []
    for row in range(len(label_B)):
        own, token_1L = plan.rows(torch.tensor([row])), given_BL[[row]].clone()
        scales = [1.0] * len(plan.step_sizes)
        if sampling.guidance:
            scales = sampling.guidance.scales(plan, backbone.guidance_rule)
        for step, scale in enumerate(scales):
            logit_LV = backbone(label_B[[row]], token_1L, own)[0]
            null_LV = backbone(torch.full_like(label_B[[row]], 3), token_1L, own)[0]
            logit_LV = null_LV + scale * (logit_LV - null_LV)
            probability_LV = filtered_logprob(logit_LV[None], sampling)[0].double().exp()
            for slot in range(plan.starts[step], plan.starts[step + 1]):
                if slot >= prefix_B[row]:
                    cdf_V = probability_LV[slot].cumsum(0)
                    token_1L[0, slot] = int((cdf_V <= noise_BL[row, slot] * cdf_V[-1]).sum())
        rows.append(token_1L[0])
    return torch.stack(rows)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"guidance": 2.5},
        {"temperature": 0.7, "top_k": 9},
        {"guidance": 1.5, "top_p": 0.8},
        {"guidance": 3.0, "top_k": 12, "top_p": 0.9, "temperature": 1.3},
    ],
    ids=str,
)
def test_tokens_are_those_of_the_slowest_decoder_for_the_same_noise(tiny, family, how):
    backbone = tiny(family)
    length, sampling = backbone.spec.length, SamplingConfig.model_validate(how)
    label_B = torch.tensor([0, 1, 2, 0, 1])
    given_BL = torch.randint(backbone.spec.vocab_size, (5, length))
    plan = backbone.plan(range(5))
    for prefix_B in ([0] * 5, [4, 0, length, 3, 1], [length - 1, 2, length - 2, 2, 3]):
        prefix_B, noise_BL = torch.tensor(prefix_B), noise(range(5), length)
        found = decode(
            backbone,
            label_B,
            sampling=sampling,
            noise_BL=noise_BL,
            plan=plan,
            given_BL=given_BL,
            prefix_B=prefix_B,
        )
        wanted = reference(backbone, label_B, sampling, noise_BL, plan, given_BL, prefix_B)
        assert torch.equal(found.token_BL, wanted)


def on_a_grid(family, side):
    """Random weights that do not depend on the grid."""
    model = build_seeded(family.Config.tiny(), SequenceSpec(24, side * side, (side, side), 3), 0)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    return model.eval()


class Seen(TorchDispatchMode):
    """Elements that are read or written by what is no view, and the shapes that are made."""

    def __init__(self):
        super().__init__()
        self.elements, self.made = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        picks = func is torch.ops.aten.index.Tensor  # reads no more than it makes
        given = [value for value in args if isinstance(value, Tensor) and not picks]
        every = found if isinstance(found, tuple) else (found,)
        made = [value for value in every if isinstance(value, Tensor)]
        self.made += [tuple(value.shape) for value in made]
        if not func.is_view:
            self.elements += sum(value.numel() for value in (*given, *made))
        return found


@torch.no_grad()
@pytest.mark.parametrize("family", [llamagen, arpg])
@pytest.mark.parametrize("guidance", [None, Guidance(scale=2.0)])
def test_a_step_costs_what_is_cached_and_not_what_there_is_room_for(family, guidance):
    def elements(side):
        """Of the second to the sixth step."""
        model, length = on_a_grid(family, side), side * side
        plan = DecodePlan(torch.arange(length).expand(3, -1), (1,) * length)
        stepper = Stepper(
            model, torch.arange(3), guidance, plan, torch.zeros(3, length, dtype=torch.long)
        )
        found = []
        for _ in range(6):
            with Seen() as seen:
                stepper.logits()
                stepper.commit(torch.ones(3, 1, dtype=torch.long))
            found.append(seen.elements)
        return found[1:]

    if guidance is not None and family is arpg:  # grows with the progress, which the grid decides
        guidance = Guidance(scale=2.0, rule="arpg_constant")
    small, large = elements(4), elements(16)
    assert small == large
    assert small == sorted(small), "each step attends to one slot more"


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scale", [None, 2.0])
def test_sampling_never_holds_the_logits_of_whole_sequences(tiny, family, scale):
    backbone, guidance = tiny(family), None if scale is None else Guidance(scale=scale)
    vocab, length = backbone.spec.vocab_size, backbone.spec.length
    plan = backbone.plan(range(4))
    assert max(plan.step_sizes) < length
    with Seen() as seen:
        decode(
            backbone,
            torch.arange(4) % 3,
            sampling=SamplingConfig(guidance=guidance),
            noise_BL=noise(range(4), length),
            plan=plan,
            given_BL=torch.zeros(4, length, dtype=torch.long),
            prefix_B=torch.tensor([0, 2, 5, length - 1]),
        )
    logits = {shape for shape in seen.made if len(shape) == 3 and shape[-1] == vocab}
    assert {shape[1] for shape in logits} == set(plan.step_sizes)


@torch.no_grad()
@pytest.mark.parametrize("family", [llamagen, arpg])
def test_what_is_given_is_read_and_not_decoded(family):
    """Of 36 steps every ninth may be entered: prefixes of 4, 20 and 33 slots are in from steps 4,
    13 = 4 + 9 and 31 = 4 + 3 x 9 on, and one of all slots never."""
    model, rows = layered(on_a_grid(family, 6)), []
    hook = model.head.register_forward_hook(lambda module, given, out: rows.append(len(out)))
    prefix_B = torch.tensor([33, 4, 36, 20])
    cell_BL = torch.randint(24, (4, 36))
    plan = DecodePlan(torch.stack([torch.randperm(36) for _ in range(4)]), (1,) * 36)
    if family is llamagen:
        plan = model.plan(range(4))
    call = partial(
        decode,
        model,
        torch.arange(4) % 3,
        sampling=SamplingConfig(),
        noise_BL=noise(range(4), 36),
        plan=plan,
    )
    found = call(given_BL=plan.to_slots(cell_BL), prefix_B=prefix_B)
    hook.remove()
    assert sum(rows) == (36 - 4) + (36 - 13) + (36 - 31)
    is_given_BL = torch.arange(36) < prefix_B[:, None]
    assert torch.equal(found.token_BL[is_given_BL], plan.to_slots(cell_BL)[is_given_BL])
    logprob_BLV = model(torch.arange(4) % 3, found.token_BL, plan).log_softmax(-1)
    scored_BL = logprob_BLV.gather(-1, found.token_BL[..., None])[..., 0]
    torch.testing.assert_close(
        found.logprob_BL, scored_BL.masked_fill(is_given_BL, 0), atol=1e-4, rtol=1e-5
    )


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_logprobs_are_those_of_the_rounded_weights_that_drew(tiny, family):
    """In bfloat16, too: the softmax in float32 of the very logits that were drawn from."""
    backbone = tiny(family).bfloat16()
    length, plan = backbone.spec.length, backbone.plan(range(3))
    found = decode(
        backbone,
        torch.arange(3),
        sampling=SamplingConfig(),
        noise_BL=noise(range(3), length),
        plan=plan,
    )
    assert found.logprob_BL.dtype == torch.float32
    steps = len(plan.step_sizes)
    with token_steps(backbone, steps if max(plan.step_sizes) == 1 else 0, 3):
        stepper = Stepper(backbone, torch.arange(3), None, plan, found.token_BL)
        for step in range(steps):
            token_Bn = found.token_BL[:, plan.slots(step)]
            logprob_BnV = stepper.logits().log_softmax(-1)
            wanted = logprob_BnV.gather(-1, token_Bn[..., None])[..., 0]
            torch.testing.assert_close(
                found.logprob_BL[:, plan.slots(step)], wanted, rtol=0, atol=1e-6
            )
            stepper.commit(token_Bn)
