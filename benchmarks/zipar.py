"""What ZipAR costs and gains: wall-clock against raster, and likelihood of what it draws.

    python -m benchmarks.zipar                     # a LlamaGen with random weights on this CPU
    python -m benchmarks.zipar --device cuda --preset B --grids 24 --batches 64
    python -m benchmarks.zipar --weights runs/x/student.safetensors    # quality of a trained one

Speed: every decoder in turn, forwards and backwards, in one process; medians over the rounds, so
that a drift of the machine cancels. Beside wall-clock stands the process's own CPU time, which
other jobs disturb less (with a GPU it is the host's share). Prefixes are those of the paper,
U[.25, .75] per sequence; the batch starts at the shortest. Quality: mean
log-probability per token under the model's own raster pass, of raster samples and of ZipAR samples
from the same noise. It says what ZipAR changes in the distribution; only a trained model tells how
much that is.
"""

import argparse
import math
import os
import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from common.artifacts.backbone_file import load_backbone
from common.models.backbone import Backbone, build_seeded
from common.models.backbones import llamagen
from common.models.plan import DecodePlan, ZipARConfig
from common.spec import SequenceSpec
from rollout.sampler import SamplingConfig, decode, noise

WINDOWS = (2, 4, 8)


def main() -> None:
    options = parser().parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    print(machine(device))
    if options.weights is not None:
        backbone, _ = load_backbone(options.weights)
        models = [backbone.to(device).eval()]
        print(f"weights: {options.weights}")
    else:
        models = [random_model(options, side).to(device).eval() for side in options.grids]
        parameters = sum(value.numel() for value in models[0].parameters())
        print(
            f"random weights, {parameters / 1e6:.1f} M parameters: speed is that of a trained one"
        )
    for model in models:
        rows, cols = model.spec.grid
        for batch in options.batches:
            for prefixes in (False, True):
                kind = "after prefixes U[.25, .75]" if prefixes else "whole images"
                print(f"\n{rows}x{cols}, batch {batch}, {kind}")
                for line in timings(model, batch, prefixes, options.rounds):
                    print(line)
        print(f"\n{rows}x{cols}, mean log-probability per token under the raster pass")
        for line in likelihoods(model, options.images):
            print(line)
    print(f"\nload at the end: {load()}")


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description="ZipAR against raster decoding")
    found.add_argument("--device", default="cpu")
    found.add_argument("--threads", type=int, default=1)
    found.add_argument("--grids", type=int, nargs="+", default=[16, 24])
    found.add_argument("--batches", type=int, nargs="+", default=[8, 64])
    found.add_argument("--rounds", type=int, default=3)
    found.add_argument("--images", type=int, default=16, help="samples for the likelihood")
    found.add_argument("--preset", help="a published size; otherwise width 256, depth 4")
    found.add_argument("--vocab", type=int, default=4096)
    found.add_argument("--weights", type=Path, help="a LlamaGen written by varkd")
    return found


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


def timings(model: Backbone, batch: int, prefixes: bool, rounds: int) -> Iterator[str]:
    kinds = decoders(model.spec.grid[1])
    prefix_B = prefixes_of(model, batch) if prefixes else torch.zeros(batch).long()
    wall: dict[str, list[float]] = {name: [] for name in kinds}
    busy: dict[str, list[float]] = {name: [] for name in kinds}
    names = list(kinds)
    sample(model, kinds["window 2"], batch, prefix_B)  # warm up
    for at in range(rounds):
        for name in names if at % 2 == 0 else names[::-1]:
            started, worked = time.perf_counter(), time.process_time()
            sample(model, kinds[name], batch, prefix_B)
            wall[name].append(time.perf_counter() - started)
            busy[name].append(time.process_time() - worked)
    plan, first = model.plan(range(batch)), int(prefix_B.min())
    for name, sampling in kinds.items():
        steps = len(model.drawing_plan(plan, sampling.decoding, given=first).step_sizes) - first
        yield (
            f"  {name:10} {steps:4} steps  {statistics.median(wall[name]):7.2f} s  "
            f"{ratio(wall, name):.2f} of raster  CPU time {ratio(busy, name):.2f}"
        )


def ratio(seconds: dict[str, list[float]], name: str) -> float:
    """Median over the rounds of this decoder's time over raster's."""
    pairs = zip(seconds[name], seconds["raster"], strict=True)
    return statistics.median(mine / raster for mine, raster in pairs)


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
def likelihoods(model: Backbone, images: int) -> Iterator[str]:
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
        difference_B = total_B - raster_B
        error = float(difference_B.std()) / math.sqrt(images)
        yield (
            f"  {name:10} {float(total_B.mean()):8.4f}  against raster "
            f"{float(difference_B.mean()):+.4f} (standard error {error:.4f}, {images} images)"
        )


def machine(device: torch.device) -> str:
    where = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    threads = torch.get_num_threads()
    cores = f"{os.cpu_count()} CPU cores, {threads} thread(s)"
    return f"{where}, {cores}, torch {torch.__version__}, load {load()}"


def load() -> str:
    return "/".join(f"{value:.1f}" for value in os.getloadavg())


if __name__ == "__main__":
    main()
