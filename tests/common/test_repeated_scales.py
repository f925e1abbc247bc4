"""Token maps whose sides repeat, as VAR's code allows: compared with its loops, written out here.

Upstream decides by the index of a scale, never by its side (docs/backbones.md, "VAR tokenizer"):
which convolution, whether anything is resized, and what a token may see.
"""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from common.errors import InputError
from common.models.backbones import var
from common.models.residual_quantizer import ResidualQuantizer
from common.spec import SequenceSpec
from common.tokenization.multiscale import multiscale_shape
from common.tokenization.tokenizer import load_tokenizer, save_tokenizer
from common.tokenization.tokenizers import multiscale_kmeans
from rollout.sampler import SamplingConfig, decode, noise

REPEATED = [(1, 2, 2, 3), (1, 1, 2), (1, 2, 3, 3), (2, 2, 2, 4, 4, 4), (3, 3)]
VOCABULARY, WIDTH, PHIS = 24, 4, 4


def quantizer(scales, seed=0):
    made = ResidualQuantizer(VOCABULARY, WIDTH, scales, phis=PHIS)
    generator = torch.Generator().manual_seed(seed)
    for buffer in (made.code_VD, made.phi_weight, made.phi_bias):
        buffer.copy_(torch.randn(buffer.shape, generator=generator))
    return made


def official_phi(made, index, count, h):
    """PhiPartiallyShared: the nearest of four ticks to si / (SN - 1)."""
    ticks = np.linspace(1 / 3 / PHIS, 1 - 1 / 3 / PHIS, PHIS)
    chosen = np.argmin(np.abs(ticks - index / (count - 1))).item()
    weight, bias = made.phi_weight[chosen], made.phi_bias[chosen]
    return h * 0.5 + F.conv2d(h, weight, bias, padding=1) * 0.5


def official_pass(made, scales, latent):
    """(token_BL, teacher-forcing inputs, canvas): f_to_idxBl and idxBl_to_var_input in one."""
    rest, canvas = latent.clone(), torch.zeros_like(latent)
    side, count = scales[-1], len(scales)
    tokens, inputs = [], []
    for index, patches in enumerate(scales):
        size = (patches, patches)
        z = F.interpolate(rest, size=size, mode="area") if index != count - 1 else rest
        z = z.permute(0, 2, 3, 1).reshape(-1, WIDTH)
        distance = (z[:, None] - made.code_VD[None]).square().sum(-1)
        token = distance.argmin(1).view(len(latent), patches, patches)
        h = made.code_VD[token].permute(0, 3, 1, 2)
        if index != count - 1:
            h = F.interpolate(h, size=(side, side), mode="bicubic")
        h = official_phi(made, index, count, h.contiguous())
        canvas, rest = canvas + h, rest - h
        tokens.append(token.flatten(1))
        if index < count - 1:
            following = (scales[index + 1], scales[index + 1])
            inputs.append(F.interpolate(canvas, size=following, mode="area").flatten(2))
    return torch.cat(tokens, 1), torch.cat(inputs, 2).transpose(1, 2), canvas


@pytest.mark.parametrize("scales", REPEATED)
def test_tokens_inputs_and_canvas_are_those_of_the_official_loops(scales):
    made = quantizer(scales)
    latent = torch.randn(
        3, WIDTH, scales[-1], scales[-1], generator=torch.Generator().manual_seed(1)
    )
    token_BL, input_BnD, canvas = official_pass(made, scales, latent)
    assert torch.equal(made.quantise(latent), token_BL)
    torch.testing.assert_close(made.inputs(token_BL), input_BnD, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(made.accumulate(token_BL), canvas, atol=1e-4, rtol=1e-4)
    assert token_BL.shape[1] == sum(side**2 for side in scales)


def model(scales):
    torch.manual_seed(3)
    made = var.Config.tiny().build(
        SequenceSpec(VOCABULARY, sum(s * s for s in scales), (scales[-1],) * 2, 3, scales)
    )
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    made.attach({"quantizer": quantizer(scales)})
    return made.eval()


@torch.no_grad()
@pytest.mark.parametrize("scales", REPEATED)
def test_a_map_sees_the_map_of_its_own_side_before_it_and_not_itself(scales):
    made = model(scales)
    plan = made.plan([0])
    assert plan.step_sizes == tuple(side**2 for side in scales)
    token_BL = torch.zeros(1, made.spec.length, dtype=torch.long)
    before = made(torch.tensor([1]), token_BL, plan)
    for step in range(len(scales)):
        changed = token_BL.clone()
        changed[:, plan.slots(step)] = 5
        after = made(torch.tensor([1]), changed, plan)
        end = plan.slots(step).stop
        torch.testing.assert_close(after[:, :end], before[:, :end], atol=1e-4, rtol=1e-4)
        if step + 1 < len(scales):
            following = plan.slots(step + 1)
            assert (after - before)[:, following].abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("scales", REPEATED)
def test_cached_decoding_is_scored_with_the_probabilities_that_drew_it(scales):
    made = model(scales)
    plan = made.plan([0, 1])
    decoded = decode(
        made,
        torch.tensor([0, 2]),
        sampling=SamplingConfig(),
        noise_BL=noise([0, 1], made.spec.length),
        plan=plan,
        given_BL=torch.zeros(2, made.spec.length, dtype=torch.long),
        prefix_B=torch.zeros(2, dtype=torch.long),
    )
    logit_BLV = made(torch.tensor([0, 2]), decoded.token_BL, plan)
    scored = logit_BLV.log_softmax(-1).gather(-1, decoded.token_BL[..., None])[..., 0]
    torch.testing.assert_close(decoded.logprob_BL, scored, atol=1e-3, rtol=1e-3)
    hidden = made.official_buffers()["attn_bias_for_masking"][0, 0]
    scale_L = torch.tensor([k for k, side in enumerate(scales) for _ in range(side * side)])
    assert torch.equal(hidden == 0, scale_L[:, None] >= scale_L)


def test_a_tokenizer_with_repeated_sides_is_fitted_stored_and_read_back(tmp_path):
    config = multiscale_kmeans.Config(vocab_size=16, patch=2, scales=(1, 2, 2, 4))
    pixels = torch.randint(256, (64, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    tokenizer = config.fit(iter([pixels.to(torch.uint8)]), size=8, channels=1, seed=0)
    path = tmp_path / "tokenizer.safetensors"
    save_tokenizer(path, tokenizer, config, size=8, channels=1)
    again = load_tokenizer(path)
    token_BL = tokenizer.encode(pixels.to(torch.uint8))
    assert token_BL.shape == (64, 1 + 4 + 4 + 16)
    assert torch.equal(again.encode(pixels.to(torch.uint8)), token_BL)
    assert torch.equal(again.decode(token_BL), tokenizer.decode(token_BL))


@pytest.mark.parametrize("scales", [(), (2, 1), (1, 3, 2, 3), (4096, 4096)])
def test_sides_that_shrink_or_make_too_many_tokens_are_refused(scales):
    with pytest.raises(InputError, match=r"no side may be smaller|tokens per image"):
        multiscale_shape(8, scales)
