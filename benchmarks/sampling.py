"""Tokens per second by family and batch, beside what the machine could do.

    python -m benchmarks.sampling --out sampling.json
    python -m benchmarks.sampling --models llamagen-B --batches 1 8 --guidance 2 --side 16
    python -m benchmarks.sampling --device cuda --dtypes float32 bfloat16 --batches 64 256

Random weights (speed is that of trained ones). `of_matmul` is the share of the machine's rate of
multiplying large matrices in that type, `of_read` the share of its rate of reading memory, counted
as what the products and attentions take in and give out; a model that fits a cache can read faster.
`--layered` adds the sampler layer by layer: without captured steps on a GPU, without C on a CPU.
`of_limit` is what time the slower of the two would need for every single product, over the time it
took: 1 is a sampler that waits for nothing else.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.measuring import Machine, interleaved, machine, parser, report
from common.device import precision
from common.models.backbone import Backbone, build_seeded
from common.models.backbones import arpg, llamagen, var
from common.models.cpu.native_steps import has_steps
from common.models.guidance import Guidance
from common.models.layers import CausalAttention
from common.models.residual_quantizer import ResidualQuantizer
from common.spec import SequenceSpec
from rollout.sampler import SamplingConfig, decode, noise

SCALES = {16: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 8: (1, 2, 3, 4, 6, 8), 4: (1, 2, 3, 4)}
MODELS = {
    "llamagen-small": llamagen.Config(width=192, depth=6, heads=6, multiple_of=32),
    "llamagen-B": llamagen.Config.model_validate({"preset": "B"}),
    "llamagen-L": llamagen.Config.model_validate({"preset": "L"}),
    "llamagen-XL": llamagen.Config.model_validate({"preset": "XL"}),
    "var-small": var.Config(width=192, depth=4, heads=4),
    "var-d8": var.Config(width=512, depth=8, heads=8),
    "var-d16": var.Config.model_validate({"preset": "d16"}),
    "arpg-small": arpg.Config(width=192, depth=6, heads=6, multiple_of=32),
    "arpg-L": arpg.Config.model_validate({"preset": "L"}),
}
STD = 2.0
"""Of the random heads' logits, as a trained model's."""


class Work(TorchDispatchMode):
    """What products and attentions must compute and move at least: FLOPs, bytes, seconds."""

    def __init__(self, flops_per_s: float, bytes_per_s: float) -> None:
        super().__init__()
        self._rates = flops_per_s, bytes_per_s
        self.total: Counter[str] = Counter()
        self.seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        flops, moved = _flops(func, args, kwargs or {}, out), 0
        if flops:
            first = out[0] if isinstance(out, tuple) else out
            moved = sum(value.nbytes for value in (*args, first) if isinstance(value, Tensor))
        self._add(flops, moved)
        return out

    def add_token_steps(self, model: Backbone, rows: int) -> None:
        """Decoding of a whole sequence, one token a row at a time, by what it multiplies by."""
        weights = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)]
        depth = sum(isinstance(layer, CausalAttention) for layer in model.modules())
        size, width = weights[0].element_size(), model.head.in_features
        for slot in range(model.spec.length):
            for weight in weights:
                passed = size * rows * sum(weight.shape)
                self._add(2 * rows * weight.numel(), weight.nbytes + passed)
            cached = 2 * rows * (slot + 1) * width
            self._add(2 * depth * cached, depth * size * (cached + 2 * rows * width))

    def _add(self, flops: int, moved: int) -> None:
        self.total.update(flops=flops, bytes=moved)
        self.seconds += max(flops / self._rates[0], moved / self._rates[1])


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
        query, key = args[:2]
        return 4 * query.numel() * key.shape[2]
    if func is torch.ops.mkldnn._linear_pointwise.default:  # by a packed weight
        return 2 * args[0].numel() * out.shape[-1]
    counts = flop_registry.get(func.overloadpacket)
    return counts(*args, **kwargs, out_val=out) if counts else 0


def main() -> None:
    options = _parser().parse_args()
    on = machine(options)
    rows = []
    for name in options.models:
        rows += rows_of(name, options, on)
    report("sampling", options, on, rows)


def _parser():
    found = parser("tokens per second of the sampler")
    found.add_argument("--models", nargs="+", default=["llamagen-small"], choices=MODELS)
    found.add_argument("--batches", type=int, nargs="+", default=[1, 8, 16, 32, 64])
    found.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    found.add_argument("--guidance", type=float, help="by default none")
    found.add_argument("--side", type=int, default=16, choices=[4, 8, 16, 24])
    found.add_argument("--vocab", type=int, default=4096)
    found.add_argument("--layered", action="store_true", help="also layer by layer")
    return found


def rows_of(name: str, options: Any, on: Machine) -> list[dict[str, Any]]:
    """Every type, batch and way of one model."""
    models = {
        dtype: random_model(MODELS[name], options.side, options.vocab)
        .to(options.device, precision(dtype))
        .eval()
        for dtype in options.dtypes
    }
    found = list(product(options.batches, options.dtypes, [False, True][: 1 + options.layered]))
    cases = {}
    for batch, dtype, by_layers in found:
        decoded = partial(tokens, models[dtype], batch, options.guidance)
        cases[batch, dtype, by_layers] = (
            partial(layered, models[dtype], decoded) if by_layers else decoded
        )
    times = interleaved({str(key): case for key, case in cases.items()}, options.rounds)
    works: dict[tuple[int, str], Work] = {}
    rows = []
    for key in cases:
        batch, dtype, by_layers = key
        timing = times[str(key)]
        seconds = timing.cpu if options.device == "cpu" else timing.wall
        if (batch, dtype) not in works:
            works[batch, dtype] = _work(models[dtype], batch, options.guidance, dtype, on)
        work, count = works[batch, dtype], batch * models[dtype].spec.length
        rows.append(
            {
                "model": name,
                "dtype": dtype,
                "batch": batch,
                **({"layered": by_layers} if options.layered else {}),
                "tokens_per_s": count / seconds,
                "ms_per_token": 1e3 * seconds / count,
                "of_matmul": work.total["flops"] / (on.matmul_gflops[dtype] * 1e9) / seconds,
                "of_read": work.total["bytes"] / (on.read_gb_per_s * 1e9) / seconds,
                "of_limit": work.seconds / seconds,
            }
        )
    return rows


def layered(model: Backbone, case: Callable[[], object]) -> None:
    """The case layer by layer: without captured steps, or steps in C."""
    kept = model.has_token_step, model.token_layers
    model.has_token_step, model.token_layers = False, lambda: None  # pyright: ignore[reportAttributeAccessIssue]
    try:
        case()
    finally:
        model.has_token_step, model.token_layers = kept  # pyright: ignore[reportAttributeAccessIssue]


def _work(model: Backbone, batch: int, scale: float | None, dtype: str, on: Machine) -> Work:
    """Of one decoded batch."""
    work = Work(on.matmul_gflops[dtype] * 1e9, on.read_gb_per_s * 1e9)
    unseen = model.has_token_step if on.device == "cuda" else has_steps(model)
    if unseen:  # in a graph, or in C, no call is seen
        work.add_token_steps(model, batch * (1 if scale is None else 2))
        return work
    with work:
        tokens(model, batch, scale)
    return work


def random_model(config: Any, side: int, vocab: int, classes: int = 1000) -> Backbone:
    """Weights with informative logits (a fresh head is zero), on the CPU."""
    scales = SCALES[side] if isinstance(config, var.Config) else ()
    length = sum(scale * scale for scale in scales) or side * side
    spec = SequenceSpec(vocab, length, (side, side), classes, scales)
    model = build_seeded(config, spec, 0)
    generator = torch.Generator().manual_seed(0)
    nn.init.normal_(model.head.weight, std=STD / config.width**0.5, generator=generator)
    for module in model.modules():
        if isinstance(module, ResidualQuantizer):
            nn.init.normal_(module.code_VD, generator=generator)
            nn.init.normal_(module.phi_weight, std=0.03, generator=generator)
    return model


def tokens(model: Backbone, batch: int, scale: float | None, **how: Any) -> Tensor:
    """cell_BL of one decoded batch."""
    device = next(model.parameters()).device
    sampling = SamplingConfig(guidance=None if scale is None else Guidance(scale=scale), **how)
    return decode(
        model,
        (torch.arange(batch) % model.spec.num_classes).to(device),
        sampling=sampling,
        noise_BL=noise(range(batch), model.spec.length, device),
        plan=model.plan(range(batch), sampling.decoding),
    ).cell_BL


if __name__ == "__main__":
    main()
