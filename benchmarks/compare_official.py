"""Our sampler beside the official one, from your own checkout of LlamaGen, VAR or ARPG.

    git clone https://github.com/FoundationVision/LlamaGen
    python -m benchmarks.compare_official --checkout LlamaGen --size B --batches 1 8

The family is told by the checkout's files; what its model code imports must be installed (VAR:
huggingface_hub; ARPG: transformers and einops). Both get the same random weights, classes and
guidance. First both decode greedily and must agree; then both draw, each with its own
random numbers, in turn in one process. VAR's decoder of images is left out on both sides.
`--bfloat16` adds ours in bfloat16, which pays where the machine accelerates it.
"""

import argparse
import copy
import importlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import interleaved, machine, parser, report
from benchmarks.sampling import SCALES, random_model, tokens
from common.artifacts.model_file import official_state
from common.models.backbone import Backbone
from common.models.backbones import arpg, llamagen, var
from common.models.decoding import DecodingConfig
from common.models.guidance import Guidance
from common.models.plan import DecodePlan
from rollout.sampler import SamplingConfig, decode, noise

AGREE = 0.95
"""Least share of greedy values that are equal: a near-tie may round to either side, and what
follows it in a sequence then differs."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One model twice: what each side makes of a batch of so many images."""

    ours: Backbone
    decoding: DecodingConfig
    greedy: Callable[[int], tuple[Tensor, Tensor]]
    """Ours and theirs, where both take the likeliest token."""
    theirs: Callable[[int], object]
    """The official sampler as it is."""


def main() -> None:
    options = _parser().parse_args()
    checkout = options.checkout.resolve()
    family = next((name for name, (file, _) in FAMILIES.items() if (checkout / file).exists()), "")
    if not family:
        files = ", ".join(file for file, _ in FAMILIES.values())
        sys.exit(f"--checkout {checkout} has none of {files}; give one of LlamaGen, VAR or ARPG")
    on = machine(options)
    sys.path.insert(0, str(checkout))
    pair = FAMILIES[family][1](options)
    rows = []
    for batch in options.batches:
        ours, theirs = pair.greedy(batch)
        equal = float(torch.isclose(ours.double(), theirs.double(), atol=1e-3).double().mean())
        if equal < AGREE:
            sys.exit(f"only {equal:.1%} of what both decode greedily agrees: not the same model")
        rows += [row | {"greedy_equal": equal} for row in _timed(pair, batch, options)]
    report(f"official {family} at commit {_commit(checkout)}", options, on, rows)


def _parser() -> argparse.ArgumentParser:
    found = parser("our sampler beside the official one")
    found.add_argument("--checkout", type=Path, required=True)
    found.add_argument("--size", help="a published one; by default B of LlamaGen, L of ARPG")
    found.add_argument("--depth", type=int, default=8, help="of VAR, if no --size is given")
    found.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    found.add_argument("--guidance", type=float, default=2.0)
    found.add_argument("--side", type=int, default=16, choices=[4, 8, 16])
    found.add_argument("--vocab", type=int, default=16384)
    found.add_argument("--steps", type=int, default=64, help="of ARPG")
    found.add_argument("--bfloat16", action="store_true")
    return found


def _timed(pair: Pair, batch: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    def ours(model: Backbone) -> Callable[[], object]:
        return lambda: tokens(model, batch, options.guidance, decoding=pair.decoding)

    cases = {"official": lambda: pair.theirs(batch), "ours": ours(pair.ours)}
    if options.bfloat16:
        cases["ours, bfloat16"] = ours(copy.deepcopy(pair.ours).bfloat16())
    times = interleaved(cases, options.rounds)
    seconds = {n: t.cpu if options.device == "cpu" else t.wall for n, t in times.items()}
    return [
        {
            "batch": batch,
            "case": name,
            "seconds": value,
            "tokens_per_s": batch * pair.ours.spec.length / value,
            "of_official": seconds["official"] / value,
        }
        for name, value in seconds.items()
    ]


def _labels(batch: int, options: argparse.Namespace) -> Tensor:
    return torch.arange(batch, device=options.device)


def _llamagen(options: argparse.Namespace) -> Pair:
    config = llamagen.Config.model_validate({"preset": options.size or "B"})
    ours = random_model(config, options.side, options.vocab).to(options.device).eval()
    gpt = importlib.import_module("autoregressive.models.gpt")
    generate = importlib.import_module("autoregressive.models.generate").generate
    arguments = gpt.ModelArgs(
        dim=config.width,
        n_layer=config.depth,
        n_head=config.heads,
        vocab_size=options.vocab,
        block_size=options.side**2,
    )
    model = gpt.Transformer(arguments)
    model.load_state_dict(official_state(ours))
    model.to(options.device).eval()

    def theirs(batch: int, **how: Any) -> Tensor:
        scale = {"cfg_scale": options.guidance} | how
        return generate(model, _labels(batch, options), options.side**2, **scale)

    def greedy(batch: int) -> tuple[Tensor, Tensor]:
        return tokens(ours, batch, options.guidance, top_k=1), theirs(batch, sample_logits=False)

    return Pair(ours, DecodingConfig(), greedy, theirs)


def _var(options: argparse.Namespace) -> Pair:
    depth = options.depth
    sizes = {"width": 64 * depth, "depth": depth, "heads": depth}
    config = var.Config.model_validate({"preset": options.size} if options.size else sizes)
    ours = random_model(config, options.side, options.vocab).to(options.device).eval()
    scales = SCALES[options.side]
    autoencoder = importlib.import_module("models.vqvae").VQVAE(
        vocab_size=options.vocab, z_channels=config.code_width, ch=32, v_patch_nums=scales
    )
    _give_codes(autoencoder.quantize, ours.quantizer)
    autoencoder.fhat_to_img = torch.clone  # what is timed ends with the codes' sum
    model = importlib.import_module("models.var").VAR(
        autoencoder.to(options.device),
        depth=config.depth,
        embed_dim=config.width,
        num_heads=config.heads,
        shared_aln=config.shared_aln,
        attn_l2_norm=config.l2_norm,
        patch_nums=scales,
    )
    model.load_state_dict(official_state(ours))
    model.to(options.device).eval()

    def theirs(batch: int, **how: Any) -> Tensor:
        labels = _labels(batch, options)
        return model.autoregressive_infer_cfg(batch, labels, cfg=options.guidance, **how)

    def greedy(batch: int) -> tuple[Tensor, Tensor]:
        token_BL = tokens(ours, batch, options.guidance, top_k=1)
        return (ours.quantizer.accumulate(token_BL) + 1) / 2, theirs(batch, top_k=1)

    return Pair(ours, DecodingConfig(), greedy, theirs)


def _give_codes(theirs: Any, ours: Any) -> None:
    """Copy code vectors and convolutions of a multi-scale quantiser of ours into the official."""
    theirs.embedding.weight.data.copy_(ours.code_VD)
    layers = zip(theirs.quant_resi.qresi_ls, ours.phi_weight, ours.phi_bias, strict=True)
    for phi, weight, bias in layers:
        phi.weight.data.copy_(weight)
        phi.bias.data.copy_(bias)


def _arpg(options: argparse.Namespace) -> Pair:
    config = arpg.Config.model_validate({"preset": options.size or "L"})
    ours = random_model(config, options.side, options.vocab).to(options.device).eval()
    module, length = importlib.import_module("models.arpg"), options.side**2
    arguments = module.ModelArgs(
        dim=config.width,
        n_layer=config.depth,
        n_head=config.heads,
        vocab_size=options.vocab,
        block_size=length,
    )
    model = module.Transformer(arguments)
    model.load_state_dict(official_state(ours))
    model.to(options.device).eval()
    decoding = arpg.Decoding(steps=options.steps)

    def theirs(batch: int, **how: Any) -> Tensor:
        sizes = {"guidance_scale": options.guidance, "seq_len": length, "num_iter": options.steps}
        return model.generate(_labels(batch, options), **sizes, **how)

    def greedy(batch: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(batch)
        theirs_BL = theirs(batch, top_k=1).clone()
        torch.manual_seed(batch)
        torch.rand(batch, device=options.device)  # the official sampler draws these before
        order_L = torch.rand(length, device=options.device).argsort()
        plan = ours.plan(range(batch), decoding)
        decoded = decode(
            ours,
            _labels(batch, options),
            sampling=SamplingConfig(
                guidance=Guidance(scale=options.guidance), top_k=1, decoding=decoding
            ),
            noise_BL=noise(range(batch), length, options.device),
            plan=DecodePlan(order_L.cpu().expand(batch, -1), plan.step_sizes),
        )
        return decoded.cell_BL, theirs_BL

    return Pair(ours, decoding, greedy, theirs)


FAMILIES: dict[str, tuple[str, Callable[[argparse.Namespace], Pair]]] = {
    "LlamaGen": ("autoregressive/models/gpt.py", _llamagen),
    "VAR": ("models/var.py", _var),
    "ARPG": ("models/arpg.py", _arpg),
}


def _commit(checkout: Path) -> str:
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
        cwd=checkout,
    )
    return asked.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
