"""Whether this device calculates as float32 on it does: attention, bfloat16, decoding.

On a small LlamaGen with weights of a generator's: on a GPU it is decoded by captured steps and
fused layers as large ones are.

Shape letters: B sequences, L slots, V vocabulary, H heads, D channels of a head.
"""

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from common.device import place
from common.models.backbone import Backbone, build_seeded
from common.models.backbones import llamagen
from common.spec import SequenceSpec
from deploy.doctor.finding import Finding, judged
from rollout.sampler import SamplingConfig, decode, noise

SPEC = SequenceSpec(vocab_size=512, length=64, grid=(8, 8), num_classes=10)
ROWS = 8
ATTENTION = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Largest error of values of size 1 that is rounding."""
KL_NATS = 5e-3
"""A token's distribution in bfloat16 is that near; log-probabilities of samples are nearer than
this in float32 and than ten times this in bfloat16, on average."""
ADVICE = "use device=cpu or dtype=float32 on it, and report this page"


def arithmetic() -> Iterator[Finding]:
    """One finding for each of them."""
    device, generator = place("auto"), torch.Generator().manual_seed(0)
    yield from _attention(device, generator)
    plain = small_model(generator).to(device)
    half = copy.deepcopy(plain).to(torch.bfloat16)
    yield precision(plain, half, device)
    for model in (plain, half):
        yield decoding(model, device)


def small_model(generator: torch.Generator) -> Backbone:
    """One with distributions that are far from uniform."""
    config = llamagen.Config(width=128, depth=2, heads=2)
    model = build_seeded(config, SPEC, seed=0).eval().requires_grad_(False)
    with torch.no_grad():
        model.head.weight.copy_(0.2 * torch.randn(model.head.weight.shape, generator=generator))
    return model


def _attention(device: torch.device, generator: torch.Generator) -> Iterator[Finding]:
    query, key, value = torch.randn(3, 2, 4, 64, 32, generator=generator).to(device)
    exact = _by_hand(query.double(), key.double(), value.double())
    for dtype, most in ATTENTION.items():
        mixed = F.scaled_dot_product_attention(query.to(dtype), key.to(dtype), value.to(dtype))
        error = (mixed.double() - exact).abs().max().item()
        said = f"largest error {error:.1e} of float64's, {most:g} is rounding"
        yield judged(f"attention {_name(dtype)}", said, ADVICE, fails=not error < most)


def _by_hand(query_BHLD: Tensor, key_BHLD: Tensor, value_BHLD: Tensor) -> Tensor:
    score_BHLL = query_BHLD @ key_BHLD.mT / query_BHLD.shape[-1] ** 0.5
    return score_BHLL.softmax(-1) @ value_BHLD


@torch.no_grad()
def precision(plain: Backbone, half: Backbone, device: torch.device) -> Finding:
    """Two models of the same weights, in float32 and in bfloat16."""
    generator = torch.Generator().manual_seed(1)
    label_B = torch.arange(ROWS, device=device)
    token_BL = torch.randint(SPEC.vocab_size, (ROWS, SPEC.length), generator=generator).to(device)
    plan = plain.plan(range(ROWS))
    wanted_BLV = plain(label_B, token_BL, plan).double().log_softmax(-1)
    found_BLV = half(label_B, token_BL, plan).double().log_softmax(-1)
    kl = (wanted_BLV.exp() * (wanted_BLV - found_BLV)).sum(-1).mean().item()
    said = f"{kl:.1e} nats a token from float32's distribution, {KL_NATS:g} is rounding"
    return judged("bfloat16", said, ADVICE, fails=not kl < KL_NATS)


@torch.no_grad()
def decoding(model: Backbone, device: torch.device) -> Finding:
    """What decoding says of its samples is what a whole pass says of them."""
    dtype, label_B = model.head.weight.dtype, torch.arange(ROWS, device=device)
    plan, noise_BL = model.plan(range(ROWS)), noise(range(ROWS), SPEC.length).to(device)
    done = decode(model, label_B, sampling=SamplingConfig(), noise_BL=noise_BL, plan=plan)
    all_BLV = model(label_B, done.token_BL, plan).double().log_softmax(-1)
    again_BL = all_BLV.gather(-1, done.token_BL[..., None])[..., 0]
    error = (again_BL - done.logprob_BL.double()).abs().mean().item()
    most = KL_NATS if dtype == torch.float32 else 10 * KL_NATS
    said = f"log-probabilities differ by {error:.1e} from a whole pass's, {most:g} is rounding"
    return judged(f"decoding {_name(dtype)}", said, ADVICE, fails=not error < most)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
