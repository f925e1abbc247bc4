"""The trained tokenizer: its losses, dead codes, training, and the order of the commands."""

import json

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch.nn import functional as F

from common.config.plugins import make
from common.data.tokens import load_tokens
from common.errors import InputError
from common.images.opening import ImagesConfig, open_images
from common.tokenization.conv_autoencoder import normalise
from common.tokenization.tokenizer import load_tokenizer, save_tokenizer
from deploy.main import main
from learner.optimizer import OptimizerConfig
from learner.tokenizer_training import (
    ImageBatches,
    Revival,
    TokenizerTraining,
    TokenizerTrainingConfig,
    measure,
)

TINY = {"kind": "conv_vq", "patch": 2, "width": 32, "res_blocks": 1, "code_width": 4}
FAST = OptimizerConfig(learning_rate=3e-3, weight_decay=0.0, warmup=5, schedule="cosine")


def digits(limit=None):
    return open_images(ImagesConfig(), "train").pixels(limit)


def fitted(**settings):
    config = make("common.tokenization.tokenizers", {**TINY, "vocab_size": 32, **settings})
    return config, config.fit(digits().split(512), size=8, channels=1, seed=3)


def trained(steps=40, **settings):
    config, tokenizer = fitted(**settings)
    training = TokenizerTrainingConfig(steps=steps, batch_size=32, optimizer=FAST)
    generator = torch.Generator().manual_seed(5)
    batches = ImageBatches(digits(), 8, "center", 32, generator)
    course = TokenizerTraining(tokenizer, batches, training, seed=1, device="cpu")
    rows = [course.step() for _ in range(steps)]
    return config, tokenizer.eval(), rows


@pytest.mark.parametrize("l2_norm", [False, True])
def test_training_lowers_the_loss_and_beats_the_start(l2_norm):
    held_out = open_images(ImagesConfig(), "test").pixels()
    before = measure(fitted(l2_norm=l2_norm)[1], held_out)
    _, tokenizer, rows = trained(l2_norm=l2_norm)
    after = measure(tokenizer, held_out)
    assert after["psnr"] > before["psnr"] + 0.5
    errors = [10 ** (-row["psnr"] / 10) for row in rows]
    assert sum(errors[-10:]) < 0.95 * sum(errors[:10])
    assert 0.9 < after["usage"] <= 1
    assert 10 < after["perplexity"] <= 32


def test_training_starts_where_patch_kmeans_ends():
    """All components are kept, so k-means sees the patches turned: the same codes but for luck."""
    config = make(
        "common.tokenization.tokenizers", {"kind": "patch_kmeans", "patch": 2, "vocab_size": 32}
    )
    patches = config.fit(digits().split(512), size=8, channels=1, seed=3)
    start = measure(fitted()[1], digits())["psnr"]
    assert start == pytest.approx(measure(patches, digits())["psnr"], abs=0.3)


def test_same_seed_same_weights_and_bit_exact_files(tmp_path):
    config, tokenizer, *_ = trained(steps=3)
    again = trained(steps=3)[1]
    save_tokenizer(tmp_path / "t.safetensors", tokenizer, config, size=8, channels=1)
    loaded = load_tokenizer(tmp_path / "t.safetensors")
    for name, value in tokenizer.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
        assert torch.equal(loaded.state_dict()[name], value), name
    assert torch.equal(loaded.encode(digits(50)), tokenizer.encode(digits(50)))


@pytest.mark.parametrize("commitment", [0.0, 0.25])
def test_gradients_of_the_quantiser(commitment):
    """Latents get the decoder's gradient as it is, plus 2 beta (z - e) / (n D); codes only pull."""
    _, tokenizer = trained(steps=3, commitment=commitment)[:2]
    tokenizer.zero_grad()
    image_BCHW = normalise(digits(6))
    latents = []

    def keep(_, inputs):
        inputs[0].retain_grad()
        latents.append(inputs[0])

    tokenizer.quantize.register_forward_pre_hook(keep)
    found = tokenizer.reconstruct(image_BCHW)
    error = F.mse_loss(found.image_BCHW, image_BCHW)
    (error + found.codebook_loss + found.commitment_loss).backward()
    vector_nD = latents[0]
    code_VD = tokenizer.quantize.embedding.weight
    code_nD = code_VD.detach()[found.token_BL.flatten()]
    input_nD = code_nD.clone().requires_grad_()
    F.mse_loss(tokenizer.render(input_nD), image_BCHW).backward()
    assert input_nD.grad.abs().max() > 0
    difference_nD = 2 * (vector_nD.detach() - code_nD) / vector_nD.numel()
    torch.testing.assert_close(vector_nD.grad, input_nD.grad + commitment * difference_nD)
    pull_VD = torch.zeros_like(code_VD).index_add(0, found.token_BL.flatten(), -difference_nD)
    torch.testing.assert_close(code_VD.grad, pull_VD)
    assert tokenizer.encoder.conv_in.weight.grad.abs().max() > 0


def test_dead_codes_move_to_vectors_of_the_batch():
    _, tokenizer = fitted()
    weight_VD = tokenizer.quantize.embedding.weight
    with torch.no_grad():
        weight_VD[7] = 1e3  # far from every image
    revival = Revival(32, 3, torch.Generator().manual_seed(0))
    before_VD = weight_VD.detach().clone()
    found = tokenizer.reconstruct(normalise(digits()))
    assert 7 not in found.token_BL
    for step in range(2):
        revival.observe(found.token_BL)
        revival.move(tokenizer, found.vector_nD)
        assert torch.equal(weight_VD, before_VD), step
    revival.observe(found.token_BL)
    assert revival.usage == 31 / 32
    revival.move(tokenizer, found.vector_nD)
    assert revival.moved == 1
    assert (found.vector_nD == weight_VD[7]).all(1).any()
    others = torch.arange(32) != 7
    assert torch.equal(weight_VD[others], before_VD[others])
    assert 7 in tokenizer.encode(digits())


def test_batches_visit_every_image_once_per_epoch_in_one_of_its_views():
    pixel_N1HW = torch.arange(20, dtype=torch.uint8).view(10, 1, 1, 2).expand(10, 1, 2, 2)
    batches = ImageBatches(pixel_N1HW, 2, "flip", 5, torch.Generator().manual_seed(0))
    drawn = torch.cat([next(batches) for _ in range(40)])
    left, right = drawn[:, 0, 0, 0].long(), drawn[:, 0, 0, 1].long()
    rows = (torch.minimum(left, right) // 2).view(20, 10)
    assert rows.sort(1).values.tolist() == [list(range(10))] * 20
    assert 0.3 < (left > right).double().mean() < 0.7


def test_measures_by_hand():
    _, tokenizer = fitted()
    flat = torch.full((3, 1, 8, 8), 128, dtype=torch.uint8)
    found = measure(tokenizer, flat)
    error = (tokenizer.decode(tokenizer.encode(flat)).double() - 128).square().mean()
    assert found["psnr"] == pytest.approx(float(10 * torch.log10(255**2 / error)))
    used = len(tokenizer.encode(flat).unique())
    assert found["usage"] == used / 32
    assert 1 <= found["perplexity"] <= used + 1e-9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch": 3}, r"tokenizer\.patch is 3.*images\.size 8"),
        ({"code_width": 5}, r"tokenizer\.code_width is 5, but a patch has only 4"),
        ({"vocab_size": 100_000}, r"vocab_size is 100000.*different patches; lower it"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        fitted(**settings)


def varkd(capsys, *arguments):
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code
    shown = capsys.readouterr()
    return code, " ".join((shown.err + shown.out).split())


def test_train_then_encode_and_what_is_refused(capsys, tmp_path):
    table = "tokenizer={kind='conv_vq',patch=2,width=32,res_blocks=1,code_width=4,vocab_size=32}"
    run = ["smoke", table, "pretrain.tokenizer.steps=3", "--out", tmp_path]
    code, shown = varkd(capsys, "tokenize", "--local", *run)
    assert code == 2
    assert "trained before it encodes: run `varkd pretrain --model tokenizer`" in shown
    code, shown = varkd(capsys, "pretrain", "--model", "tokenizer", *run)
    assert code == 0
    assert "of the codes in use, perplexity" in shown
    assert (tmp_path / "tokenizer.png").stat().st_size > 1000
    file = tmp_path / "tokenizer.safetensors"
    content = file.read_bytes()
    with safe_open(file, "pt") as handle:
        facts = json.loads(handle.metadata()["pretrain"])
    assert facts["steps"] == 3
    assert {"psnr", "usage", "perplexity"} == set(facts["train"]) == set(facts["test"])
    code, shown = varkd(capsys, "tokenize", "--local", *run, "tokenizer.width=64")
    assert code == 2
    assert "made with tokenizer.width 32, but the config says 64; train it again" in shown
    code, shown = varkd(capsys, "tokenize", "--local", *run)
    assert code == 0, shown
    assert file.read_bytes() == content
    data = load_tokens(tmp_path / "tokens" / "train.parquet")
    assert torch.equal(data.token_NAL[:, 0].long(), load_tokenizer(file).encode(digits()))
    varkd(capsys, "pretrain", "--model", "tokenizer", *run, "seed=1")
    code, shown = varkd(capsys, "pretrain", *run)
    assert code == 2
    assert "tokens of another tokenizer than" in shown


def test_a_tokenizer_follows_its_images_but_no_others(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, first in (("some", 0), ("others", 40)):
        for label in "ab":
            (tmp_path / folder / label).mkdir(parents=True)
            for index, pixel_1HW in enumerate(digits()[first : first + 20]):
                image = Image.fromarray(pixel_1HW[0].numpy())
                image.save(tmp_path / folder / label / f"{index:02d}.png")
    table = "tokenizer={kind='conv_vq',patch=2,width=32,res_blocks=1,code_width=4,vocab_size=32}"
    run = ["smoke", table, "images.kind=folder", "pretrain.tokenizer.steps=1", "--out", "run"]
    assert varkd(capsys, "pretrain", "--model", "tokenizer", *run, "images.train=some")[0] == 0
    code, shown = varkd(capsys, "tokenize", "--local", *run, "images.train=others")
    assert code == 2
    assert "trained on other images than" in shown
    (tmp_path / "some").rename(tmp_path / "moved")
    assert varkd(capsys, "tokenize", "--local", *run, "images.train=moved")[0] == 0


def test_a_kind_that_is_not_trained_is_refused(capsys, tmp_path):
    code, shown = varkd(capsys, "pretrain", "smoke", "--model", "tokenizer", "--out", tmp_path)
    assert code == 2
    assert "tokenizer.kind is patch_kmeans, which is not trained" in shown
    assert "(conv_vq)" in shown
    assert not list(tmp_path.iterdir())
