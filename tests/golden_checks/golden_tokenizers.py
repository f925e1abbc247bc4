"""Checks of the tokenizers' folders and of the image crop, at the tolerances of their READMEs."""

import json

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from common.images.opening import center_crop
from common.models.residual_quantizer import phi_index
from common.tokenization.tokenizer import load_tokenizer, save_tokenizer
from common.tokenization.tokenizers import llamagen_vq, var_vqvae


def multiscale_tokenizer(golden, tmp_path):
    """The official file as a tokenizer, and where a run would store it."""
    arguments = golden.facts["args"]
    config = var_vqvae.Config(
        weights=golden.weights,
        base=arguments["ch"],
        ch_mult=tuple(golden.facts["ch_mult"]),
        res_blocks=golden.facts["num_res_blocks"],
        z_channels=arguments["z_channels"],
        vocab_size=arguments["vocab_size"],
        scales=tuple(arguments["v_patch_nums"]),
        phis=arguments["share_quant_resi"],
        using_znorm=arguments["using_znorm"],
    )
    return stored(config, arguments["v_patch_nums"][-1] * golden.facts["downsample"], tmp_path)


def stored(config, size, tmp_path):
    tokenizer = config.fit(iter(()), size=size, channels=3, seed=0)
    path = tmp_path / "tokenizer.safetensors"
    save_tokenizer(path, tokenizer, config, size=size, channels=3)
    return load_tokenizer(path), path


@torch.no_grad()
def check_var_vqvae(golden, tmp_path):
    tokenizer, _ = multiscale_tokenizer(golden, tmp_path)
    quantizer = tokenizer.quantize
    pixels, image = golden["image_u8"], golden["image"]
    golden.close("image", pixels / 255 * 2 - 1, atol=1e-6)
    golden.close("enc_out", tokenizer.encoder(image), atol=1e-4)
    latent = tokenizer.latent(image)
    golden.close("latent", latent, atol=1e-4)
    canvases = []
    tokens = quantizer.quantise(latent, watch=canvases.append)
    assert torch.equal(tokenizer.encode(pixels), tokens)
    for scale, canvas in enumerate(canvases):
        golden.equal(f"idx_{scale}", tokens[:, quantizer.slots(scale)])
        golden.close(f"fhat_{scale}", canvas, atol=1e-4)
    golden.close("var_input", quantizer.inputs(tokens), atol=1e-4)
    recon = tokenizer.render(tokenizer.embed(tokens))
    golden.close("recon_unclamped", recon, atol=1e-4)
    golden.close("recon", recon.clamp(-1, 1), atol=1e-4)
    decoded = ((golden["recon"] + 1) / 2 * 255).to(torch.uint8)
    assert (tokenizer.decode(tokens).int() - decoded.int()).abs().max() <= 1
    indices = phi_index(len(quantizer.scales), golden.facts["args"]["share_quant_resi"])
    assert list(indices) == golden.facts["phi_index_per_scale"]
    table = golden.folder / "phi_index_table.json"
    if table.exists():
        for count, expected in json.loads(table.read_text()).items():
            assert list(phi_index(int(count))) == expected, count


def check_llamagen_vq(golden, tmp_path):
    arguments = golden.facts["model_args"]
    assert arguments["encoder_ch_mult"] == arguments["decoder_ch_mult"]
    config = llamagen_vq.Config(
        weights=golden.weights,
        base=golden.facts["ch"],
        ch_mult=tuple(arguments["encoder_ch_mult"]),
        res_blocks=golden.facts["num_res_blocks"],
        z_channels=arguments["z_channels"],
        vocab_size=arguments["codebook_size"],
        code_width=arguments["codebook_embed_dim"],
        l2_norm=arguments["codebook_l2_norm"],
        commitment=arguments["commit_loss_beta"],
        entropy=arguments["entropy_loss_ratio"],
    )
    pixels, image = golden["image_u8"], golden["image"]
    tokenizer, _ = stored(config, pixels.shape[-1], tmp_path)
    golden.close("image", pixels / 255 * 2 - 1, atol=1e-6)
    with torch.no_grad():
        golden.close("enc_out", tokenizer.encoder(image), atol=1e-4)
        golden.close("latent", tokenizer.latent(image), atol=1e-4)
        tokens = tokenizer.encode(pixels)
        golden.equal("indices", tokens.view_as(golden["indices"]))
        golden.close("quantized", tokenizer.embed(tokens), atol=1e-4)
        golden.close("decoded", tokenizer.render(tokenizer.embed(tokens)), atol=1e-4)
        decoded = tokenizer.decode(tokens).permute(0, 2, 3, 1)
        assert (decoded.int() - golden["decoded_u8"].int()).abs().max() <= 1
        embedded = tokenizer.embed(golden["random_indices"])
        golden.close("random_embed", embedded, atol=1e-6)
        golden.close("random_decoded", tokenizer.render(embedded), atol=1e-4)
    check_vq_training(golden, tokenizer, image)


def check_vq_training(golden, tokenizer, image):
    found = tokenizer.reconstruct(image)
    golden.close("train.vq_loss", found.codebook_loss.view(1), atol=1e-8, rtol=1e-5)
    golden.close("train.commit_loss", found.commitment_loss.view(1), atol=1e-8, rtol=1e-5)
    golden.close("train.entropy_loss", found.entropy_loss.view(1), atol=1e-8, rtol=1e-5)
    total = F.mse_loss(found.image_BCHW, image)
    total = total + found.codebook_loss + found.commitment_loss + found.entropy_loss
    golden.close("train.loss", total.view(1), atol=0, rtol=1e-5)
    total.backward()
    golden.gradients("train.grad.", lambda name: tokenizer.get_parameter(name).grad, share=2e-3)


def check_adm_crop(golden, tmp_path):
    for case in golden.facts["cases"]:
        source = Image.fromarray(golden[f"image_{case['image']}"].numpy())
        cropped = np.asarray(center_crop(source, case["target"]))
        golden.equal(f"crop_{case['image']}_{case['target']}", torch.from_numpy(cropped.copy()))
