"""What guessing ahead costs and gains: time against raster, codes a pass, guesses kept.

    python -m benchmarks.speculation --out speculation.json          # random weights
    python -m benchmarks.speculation --weights RUN/teacher.safetensors \\
        --draft RUN/student.safetensors

All cases draw the same law. How many guesses are kept depends on the model, so only trained weights
tell what is gained: what random ones say of a slot hardly depends on the codes before it.
`of_raster` is a ratio of CPU seconds in one run (on a GPU of wall-clock); a batch ends with its
slowest sequence.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import interleaved, machine, parser, report
from benchmarks.sampling import random_model
from common.artifacts.backbone_file import load_backbone
from common.models.backbone import Backbone
from common.models.backbones import llamagen
from common.models.jacobi import JacobiConfig
from rollout.model_draft import Draft
from rollout.sampler import Decoded, SamplingConfig, decode, noise
from rollout.speculation import Acceptance


def main() -> None:
    found = parser("speculative decoding against raster")
    found.add_argument("--weights", type=Path, help="a LlamaGen written by varkd")
    found.add_argument("--draft", type=Path, help="a smaller one on the same tokens")
    found.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    found.add_argument("--windows", type=int, nargs="+", default=[4, 8, 16])
    found.add_argument("--ahead", type=int, nargs="+", default=[2, 4])
    found.add_argument("--guidance", type=float, help="by default none")
    found.add_argument("--side", type=int, default=16, help="of random weights")
    found.add_argument("--vocab", type=int, default=4096)
    options = found.parse_args()
    on = machine(options)
    if options.weights is not None:
        model = load_backbone(options.weights)[0]
    else:
        config = llamagen.Config(width=192, depth=6, heads=6, multiple_of=32)
        model = random_model(config, options.side, options.vocab)
    model = model.to(options.device).eval()
    small = None if options.draft is None else load_backbone(options.draft)[0]
    small = small if small is None else small.to(options.device).eval()
    rows = [row for batch in options.batches for row in rows_of(model, small, batch, options)]
    report("speculation", options, on, rows)


def rows_of(
    model: Backbone, small: Backbone | None, batch: int, options: Any
) -> list[dict[str, Any]]:
    """Every way of one batch, with raster first."""
    drafts: dict[str, Draft] = {}
    ways = {"raster": SamplingConfig(guidance=options.guidance)}
    for window in options.windows:
        for redraw in ("fresh", "keep", "couple"):
            sjd = JacobiConfig(window=window, redraw=redraw)
            ways[f"sjd {window} {redraw}"] = SamplingConfig(
                guidance=options.guidance, decoding=llamagen.Decoding(sjd=sjd)
            )
    if small is not None:
        for ahead in options.ahead:
            ways[f"draft {ahead}"] = ways["raster"]
            drafts[f"draft {ahead}"] = Draft(small, ahead)
    cases = {
        name: partial(decoded, model, batch, sampling, drafts.get(name))
        for name, sampling in ways.items()
    }
    times, length = interleaved(cases, options.rounds), model.spec.length
    seconds = {name: of.cpu if options.device == "cpu" else of.wall for name, of in times.items()}
    found = {name: observed(model, case) for name, case in cases.items()}
    return [
        {
            "batch": batch,
            "case": name,
            "tokens_per_s": batch * length / seconds[name],
            "of_raster": seconds[name] / seconds["raster"],
            "slots_a_pass": length / passes,
            "kept": None if acceptance is None else acceptance.share,
        }
        for name, (passes, acceptance) in found.items()
    ]


def observed(model: Backbone, case: partial[Decoded]) -> tuple[int, Acceptance | None]:
    """How often the model says something, and what became of guesses; slot by slot once each, which
    steps in C or in a graph do without calling the head."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    hook = model.head.register_forward_hook(count)
    found = case()
    hook.remove()
    return calls if found.acceptance else model.spec.length, found.acceptance


def decoded(model: Backbone, batch: int, sampling: SamplingConfig, draft: Draft | None) -> Decoded:
    """One batch."""
    device = next(model.parameters()).device
    return decode(
        model,
        (torch.arange(batch) % model.spec.num_classes).to(device),
        sampling=sampling,
        noise_BL=noise(range(batch), model.spec.length, device),
        plan=model.plan(range(batch), sampling.decoding),
        draft=draft,
    )


if __name__ == "__main__":
    main()
