"""What ZipAR costs and gains: time against raster, and likelihood of what it draws.

    python -m benchmarks.zipar --out zipar.json    # a LlamaGen with random weights on this CPU
    python -m benchmarks.zipar --device cuda --preset B --grids 24 --batches 64
    python -m benchmarks.zipar --weights runs/x/student.safetensors    # quality of a trained one

Speed: every decoder in turn; `of_raster` in CPU time on a CPU, in wall-clock on a GPU. Prefixes are
those of the paper, U[.25, .75] per sequence; the batch starts at the shortest. Quality: mean
log-probability per token under the model's own raster pass, of raster samples and of ZipAR samples
from the same noise, and what that is less than raster's, with its standard error. It says what
ZipAR changes in the distribution; only a trained model tells how much that is.
"""

import argparse
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import interleaved, machine, parser, report
from common.artifacts.backbone_file import load_backbone
from common.models.backbone import Backbone, build_seeded
from common.models.backbones import llamagen
from common.models.plan import DecodePlan, ZipARConfig
from common.spec import SequenceSpec
from rollout.sampler import SamplingConfig, decode, noise

WINDOWS = (2, 4, 8)


def main() -> None:
    options = _parser().parse_args()
    on, rows = machine(options), list[dict[str, Any]]()
    for model in models_of(options):
        for batch in options.batches:
            for prefixes in (False, True):
                rows += timings(model, batch, prefixes, options)
        rows += likelihoods(model, options.images)
    report("zipar", options, on, rows)


def _parser() -> argparse.ArgumentParser:
    found = parser("ZipAR against raster decoding")
    found.add_argument("--grids", type=int, nargs="+", default=[16, 24])
    found.add_argument("--batches", type=int, nargs="+", default=[8, 64])
    found.add_argument("--images", type=int, default=16, help="samples for the likelihood")
    found.add_argument("--preset", help="a published size; otherwise width 256, depth 4")
    found.add_argument("--vocab", type=int, default=4096)
    found.add_argument("--weights", type=Path, help="a LlamaGen written by varkd")
    return found


def models_of(options: argparse.Namespace) -> list[Backbone]:
    if options.weights is not None:
        return [load_backbone(options.weights)[0].to(options.device).eval()]
    return [random_model(options, side).to(options.device).eval() for side in options.grids]


def random_model(options: argparse.Namespace, side: int) -> Backbone:
    """Weights with informative logits: a fresh head is zero."""
    sizes = {"preset": options.preset} if options.preset else {"width": 256, "depth": 4, "heads": 4}
    config = llamagen.Config.model_validate(sizes)
    model = build_seeded(config, SequenceSpec(options.vocab, side * side, (side, side), 1000), 0)
    torch.nn.init.normal_(model.head.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    return model


def decoders(cols: int) -> dict[str, SamplingConfig]:
    """By name; a window of the width must cost what raster costs."""
    found = {"raster": SamplingConfig()}
    for window in sorted({*(w for w in WINDOWS if w < cols), cols}):
        decoding = llamagen.Decoding(zipar=ZipARConfig(window=window))
        found[f"window {window}"] = SamplingConfig(decoding=decoding)
    return found


def timings(
    model: Backbone, batch: int, prefixes: bool, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    kinds = decoders(model.spec.grid[1])
    prefix_B = prefixes_of(model, batch) if prefixes else torch.zeros(batch).long()
    cases = {name: partial(sample, model, kinds[name], batch, prefix_B) for name in kinds}
    found = interleaved(cases, options.rounds)
    plan, first = model.plan(range(batch)), int(prefix_B.min())
    which = "cpu" if options.device == "cpu" else "wall"
    for name, timing in found.items():
        drawn = model.drawing_plan(plan, kinds[name].decoding, given=first)
        yield {
            "grid": model.spec.grid[0],
            "batch": batch,
            "prefixes": prefixes,
            "decoder": name,
            "steps": len(drawn.step_sizes) - first,
            "seconds": timing.wall,
            "cpu": timing.cpu,
            "of_raster": getattr(timing, which) / getattr(found["raster"], which),
        }


def prefixes_of(model: Backbone, batch: int) -> torch.Tensor:
    length, generator = model.spec.length, torch.Generator().manual_seed(0)
    low, high = math.ceil(0.25 * length), math.floor(0.75 * length)
    return torch.randint(low, high + 1, (batch,), generator=generator)


def sample(
    model: Backbone, sampling: SamplingConfig, batch: int, prefix_B: torch.Tensor
) -> torch.Tensor:
    """token_BL; the call ends when the device has."""
    device, spec = next(model.parameters()).device, model.spec
    generator = torch.Generator().manual_seed(0)
    given_BL = torch.randint(spec.vocab_size, (batch, spec.length), generator=generator)
    decoded = decode(
        model,
        (torch.arange(batch) % spec.num_classes).to(device),
        sampling=sampling,
        noise_BL=noise(range(batch), spec.length, device),
        plan=model.plan(range(batch), sampling.decoding),
        given_BL=given_BL.to(device),
        prefix_B=prefix_B.to(device),
    )
    return decoded.token_BL.cpu().to(device)


@torch.no_grad()
def likelihoods(model: Backbone, images: int) -> Iterator[dict[str, Any]]:
    device = next(model.parameters()).device
    class_B = (torch.arange(images) % model.spec.num_classes).to(device)
    plan = model.plan(range(images))
    raster_B = None
    for name, sampling in decoders(model.spec.grid[1]).items():
        token_BL = sample(model, sampling, images, torch.zeros(images).long())
        total_B = torch.zeros(images)
        for rows in torch.arange(images).split(8):
            part = DecodePlan(plan.order_BL[rows], plan.step_sizes)
            logit_BLV = model(class_B[rows], token_BL[rows], part).float()
            chosen = logit_BLV.log_softmax(-1).gather(-1, token_BL[rows][..., None])
            total_B[rows] = chosen.mean((1, 2)).cpu()
        raster_B = total_B if raster_B is None else raster_B
        less_B = total_B - raster_B
        yield {
            "grid": model.spec.grid[0],
            "batch": images,
            "decoder": name,
            "log_probability": float(total_B.mean()),
            "against_raster": float(less_B.mean()),
            "standard_error": float(less_B.std()) / math.sqrt(images) if images > 1 else None,
        }


if __name__ == "__main__":
    main()
