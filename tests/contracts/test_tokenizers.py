"""Tokenizers: one contract for every kind, the official files, and what each kind refuses."""

import argparse
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from common.config.plugins import kinds, load_plugin
from common.config.schema import validate
from common.errors import InputError
from common.images.opening import ImagesConfig, open_images
from common.tokenization.tokenizer import load_tokenizer, save_tokenizer
from common.tokenization.tokenizers.llamagen_vq import entropy_loss

GOLDEN = Path(__file__).parents[1] / "golden"
NETWORK = {"base": 32, "ch_mult": (2, 1), "res_blocks": 1, "vocab_size": 64}
VQ = {**NETWORK, "weights": GOLDEN / "llamagen_vq" / "vq_tiny.pt", "z_channels": 16}
VAR = {**NETWORK, "weights": GOLDEN / "var_vqvae" / "vae_tiny.pth", "z_channels": 8}
OFFICIAL = {"llamagen_vq": VQ, "var_vqvae": {**VAR, "scales": (1, 2, 3, 4)}}
"""Kinds that read a file, with tiny files in the official layout: 8x8 images, 4x4 latents."""


def configure(kind, **settings):
    config = load_plugin("common.tokenization.tokenizers", kind).Config
    return validate(config, {**OFFICIAL.get(kind, {"vocab_size": 32}), **settings}, source=kind)


def fit(kind, channels=3, **settings):
    return configure(kind, **settings).fit(iter(()), size=8, channels=channels, seed=0)


@pytest.fixture
def rewrap(tmp_path):
    """Write the tensors of a tiny official file in another way."""

    def write(kind, wrap, **how):
        loaded = torch.load(OFFICIAL[kind]["weights"], weights_only=True)
        path = tmp_path / "official.pt"
        torch.save(wrap(dict(loaded.get("model", loaded))), path, **how)
        return path

    return write


def colours(count=5):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)


@pytest.fixture(params=kinds("common.tokenization.tokenizers"))
def case(request):
    """(config, image batches, channels) of every kind."""
    if request.param in OFFICIAL:
        return configure(request.param), [colours(20)], 3
    return configure(request.param), list(open_images(ImagesConfig(), "train").batches(512)), 1


def test_tokenizer_contract(case, tmp_path):
    """Every tokenizer: what it describes it does, alone or in a batch, and after a reload."""
    config, batches, channels = case
    first, second = (config.fit(iter(batches), size=8, channels=channels, seed=3) for _ in range(2))
    pixels = batches[0][:20]
    tokens = first.encode(pixels)
    assert torch.equal(tokens, second.encode(pixels))
    assert torch.equal(tokens, torch.cat([first.encode(part) for part in pixels.split(7)]))
    assert len(tokens.unique()) > 4
    assert config.describe(8) == first.shape
    spec = first.spec(10)
    assert (spec.num_classes, spec.vocab_size) == (10, config.vocab_size)
    assert tokens.dtype == torch.int64
    assert tokens.shape == (20, spec.length)
    vector_BLD = first.codebook_VD[tokens].requires_grad_()
    image = first.image_of(vector_BLD)
    torch.testing.assert_close(image, first.image(tokens), atol=1e-5, rtol=1e-5)
    (grad,) = torch.autograd.grad(image.square().sum(), vector_BLD)
    assert (grad.abs().sum(-1) > 0).all(), "every token has a part in the image"
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < spec.vocab_size
    assert first.codebook_VD.shape[0] == spec.vocab_size
    assert not first.codebook_VD.requires_grad
    ((name, lent),) = first.lent().items()
    assert name == ("quantizer" if spec.scales else "codes")
    assert torch.equal(lent.code_VD, first.codebook_VD)
    decoded = first.decode(tokens)
    assert (decoded.shape, decoded.dtype) == (pixels.shape, torch.uint8)
    path = tmp_path / "tokenizer.safetensors"
    save_tokenizer(path, first, config, size=8, channels=channels)
    again = load_tokenizer(path)
    assert torch.equal(again.encode(pixels), tokens)
    assert torch.equal(again.decode(tokens), decoded)


@pytest.mark.parametrize("kind", OFFICIAL)
@pytest.mark.parametrize(
    ("wrap", "how"),
    [
        (lambda state: {"state_dict": {n: v.half() for n, v in state.items()}}, {}),  # no loss here
        (dict, {"_use_new_zipfile_serialization": False}),
        (
            lambda state: {
                "model": {f"module.{name}": value for name, value in state.items()},
                "ema": {name: value + 1 for name, value in state.items()},
                "args": argparse.Namespace(vq_model="VQ-16"),
                "steps": 7,
            },
            {},
        ),
    ],
    ids=["half", "old", "trainer"],
)
def test_official_layouts(rewrap, kind, wrap, how):
    """The weights are found and become float32; averaged ones are not taken for them."""
    expected = fit(kind).state_dict()
    found = fit(kind, weights=rewrap(kind, wrap, **how)).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert {value.dtype for value in found.values()} == {torch.float32}


def test_safetensors_hold_the_same_names(tmp_path):
    expected = fit("llamagen_vq").state_dict()
    save_file(expected, tmp_path / "vq.safetensors")
    found = fit("llamagen_vq", weights=tmp_path / "vq.safetensors").state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def misspelt(state):
    return {"encoder.conv_out.bia": state.pop("encoder.conv_out.bias"), **state}


def one_phi_less(state):
    return {name: value for name, value in state.items() if "qresi_ls.3." not in name}


@pytest.mark.parametrize(
    ("kind", "wrap", "message"),
    [
        ("llamagen_vq", lambda s: {"tok_embeddings.weight": s["quant_conv.bias"]}, "transformer,"),
        (
            "var_vqvae",
            lambda s: {"x": s["quant_conv.bias"]},
            r"no known network \(x, .*expected a V",
        ),
        ("var_vqvae", one_phi_less, r"missing quantize.*ls\.3\.bias, quantize.*ls\.3\.weight"),
        ("llamagen_vq", misspelt, r"missing encoder\.conv_out\.bias; unexpected .*\.bia;"),
        (
            "llamagen_vq",
            lambda s: {"model": s, "a": torch.Generator()},
            r"holds code, not only tensors",
        ),
    ],
)
def test_files_with_something_else_are_refused(rewrap, kind, wrap, message):
    with pytest.raises(InputError, match=rf"official\.pt: .*{message}"):
        fit(kind, weights=rewrap(kind, wrap))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("patch_kmeans", {"patch": 3}, r"tokenizer\.patch is 3.*images\.size 8"),
        ("multiscale_kmeans", {"patch": 3}, r"tokenizer\.patch 3 gives 2\.66667 patches"),
        ("multiscale_kmeans", {"scales": (1, 2)}, r"ends with 2.*images\.size 8.*gives 4 patches"),
        ("multiscale_kmeans", {"scales": (1, 4, 3, 4)}, r"\[1, 4, 3, 4\]; no side may be smaller"),
        ("multiscale_kmeans", {"scales": ()}, r"tokenizer\.scales is \[\]"),
        ("llamagen_vq", {"vocab_size": 32}, r"holds a LlamaGen tokenizer.*vocab_size 64.* is 32;"),
        ("llamagen_vq", {"base": 64}, r"base 32, ch_mult \(2, 1\).*tokenizer\.base is 64"),
        ("llamagen_vq", {"code_width": 4}, r"code_width 8.*tokenizer\.code_width is 4"),
        ("llamagen_vq", {"weights": VAR["weights"]}, r"a VAR tokenizer.*expected a LlamaGen tok"),
        ("llamagen_vq", {"weights": None}, r"tokenizer\.weights is not set.*vq_ds16_c2i\.pt"),
        ("llamagen_vq", {"weights": "nowhere.pt"}, r"nowhere\.pt: no such file"),
        ("llamagen_vq", {"ch_mult": (2, 1, 1, 1, 1)}, r"images\.size 8 is no multiple of 16"),
        ("llamagen_vq", {"preset": "VQ-8"}, r"preset VQ-8 has base 128, not 32; drop one"),
        ("llamagen_vq", {"base": 16}, r"base: .*multiple of 32"),
        ("var_vqvae", {"ch_mult": (1, 2)}, r"holds a VAR tokenizer.*ch_mult is \(1, 2\)"),
        ("var_vqvae", {"res_blocks": 2}, r"res_blocks 1.*tokenizer\.res_blocks is 2"),
        ("var_vqvae", {"weights": VQ["weights"]}, r"a LlamaGen tokenizer.*expected a VAR tok"),
        ("var_vqvae", {"weights": None}, r"tokenizer\.weights is not set.*z32\.pth"),
        ("var_vqvae", {"scales": (1, 2)}, r"images\.size is 8.*set images\.size to 4"),
        ("var_vqvae", {"scales": (2, 1, 4)}, r"no side may be smaller"),
        ("var_vqvae", {"channels": 1}, r"images\.channels is 1; set it to 3"),
    ],
)
def test_settings_that_do_not_fit_are_refused(kind, settings, message):
    with pytest.raises(InputError, match=message):
        fit(kind, **settings)


@pytest.mark.parametrize(
    ("kind", "settings", "length", "parameters"),
    [
        ("llamagen_vq", {"preset": "VQ-16"}, 256, 71_883_403),
        ("llamagen_vq", {"preset": "VQ-8"}, 1024, 70_109_835),
        ("var_vqvae", {}, 680, 108_948_355),
    ],
)
def test_published_sizes(kind, settings, length, parameters):
    config = load_plugin("common.tokenization.tokenizers", kind).Config(**settings)
    with torch.device("meta"):
        model = config.build(size=256, channels=3)
    assert model.shape.length == length
    assert sum(value.numel() for value in model.state_dict().values()) == parameters
    assert type(config).model_validate_json(config.model_dump_json(exclude={"kind"})) == config


@pytest.mark.parametrize("kind", OFFICIAL)
def test_memory_bound_does_not_change_results(kind):
    model, pixels = fit(kind), colours()
    tokens = model.encode(pixels)
    decoded = model.decode(tokens)
    model.images_at_once = 2
    assert torch.equal(model.encode(pixels), tokens)
    assert int((model.decode(tokens).int() - decoded.int()).abs().max()) <= 1


def test_pixels_are_truncated_as_the_official_samplers_do():
    image = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.996, 1.0, 2.0])
    ours = {kind: fit(kind).to_pixels(image).tolist() for kind in OFFICIAL}
    assert ours["llamagen_vq"] == [0, 0, 64, 128, 254, 255, 255]
    assert ours["var_vqvae"] == [0, 0, 63, 127, 254, 255, 255]


def test_llamagen_codes_are_directions():
    model, pixels = fit("llamagen_vq"), colours()
    fresh = configure("llamagen_vq").build(size=8, channels=3).quantize.embedding.weight
    for code_VD in (fresh, model.codebook_VD):
        torch.testing.assert_close(code_VD.norm(dim=1), torch.ones(64), atol=1e-5, rtol=0)
    tokens = model.encode(pixels)
    decoded = model.decode(tokens)
    with torch.no_grad():
        model.quantize.embedding.weight.mul_(torch.arange(1, 65)[:, None])
    assert torch.equal(model.encode(pixels), tokens)
    assert int((model.decode(tokens).int() - decoded.int()).abs().max()) <= 1


def test_var_can_choose_codes_by_cosine():
    by_cosine = fit("var_vqvae", using_znorm=True)
    latent = by_cosine.latent(colours().float() / 255 * 2 - 1)
    coarse_BD = latent.mean((2, 3))
    expected = F.cosine_similarity(coarse_BD[:, None], by_cosine.codebook_VD[None], dim=2).argmax(1)
    assert torch.equal(by_cosine.quantise(latent)[:, 0], expected)
    assert not torch.equal(fit("var_vqvae").quantise(latent)[:, 0], expected)


def test_llamagen_training_pass():
    """The losses are the published ones and the encoder learns through the quantiser."""
    model = fit("llamagen_vq", commitment=0.5, entropy=0.1)
    image = colours().float() / 255 * 2 - 1
    found = model.reconstruct(image)
    tokens = model.encode(colours())
    decoded = model.render(model.embed(tokens))
    torch.testing.assert_close(found.image_BCHW, decoded, atol=1e-4, rtol=0)
    latent = F.normalize(model.latent(image), dim=1)
    squared = (model.embed(tokens) - latent).square().mean()
    torch.testing.assert_close(found.codebook_loss, squared)
    torch.testing.assert_close(found.commitment_loss, 0.5 * squared)
    tenfold = fit("llamagen_vq", entropy=1).reconstruct(image).entropy_loss
    torch.testing.assert_close(10 * found.entropy_loss, tenfold)
    assert tenfold.item() != 0
    assert fit("llamagen_vq").reconstruct(image).entropy_loss.item() == 0

    names = ("encoder.conv_in.weight", "quantize.embedding.weight")
    parts = [model.get_parameter(name) for name in names]
    for term, expected in {
        "image_BCHW": [True, False],
        "codebook_loss": [False, True],
        "commitment_loss": [True, False],
        "entropy_loss": [True, True],
    }.items():
        total = getattr(found, term).sum()
        grads = torch.autograd.grad(total, parts, retain_graph=True, allow_unused=True)
        assert [grad is not None for grad in grads] == expected, term


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        ([[0.0, 1.0], [1.0, 0.0]], -math.log(2)),  # sure, and both codes are used
        ([[0.0, 1.0], [0.0, 1.0]], 0.0),  # sure of the same code
        ([[0.0, 0.0], [0.0, 0.0]], 0.0),  # undecided
        # Temperature 0.01 turns a lead of 0.01 into odds of e: 0.5822 nats are left.
        ([[0.0, 0.01], [0.01, 0.0]], 0.5822 - math.log(2)),
    ],
)
def test_entropy_loss_by_hand(distance, expected):
    assert entropy_loss(torch.tensor(distance)).item() == pytest.approx(expected, abs=1e-4)
