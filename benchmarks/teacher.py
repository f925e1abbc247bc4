"""The teacher's scoring pass: images a second, and its share of the machine's matmul rate.

    python -m benchmarks.teacher --out teacher.json
    python -m benchmarks.teacher --device cuda --preset L --side 24 --batch 64 --vocab 16384

Random weights. `features`: the forward pass alone; `with entropies`: with the signal and the
entropy of every token, as a gate reads them; `without entropies`: as plain distillation has it.
`guided` has both branches of classifier-free guidance; `together` and `apart` are the two ways to
compute them, whatever a teacher would choose for so many tokens. Operations are counted by torch,
those of the head for the entropy among them, and on a CPU those of attention are not.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import interleaved, machine, parser, report
from benchmarks.rows import sampled_rows
from common.exchange.signals import guided_hidden
from common.models.backbone import Backbone, build_seeded
from common.models.backbones import llamagen
from common.models.guidance import Guidance
from common.models.plan import DecodePlan
from common.spec import SequenceSpec
from teacher_server.teacher import TeacherConfig, guided_features, signal_columns

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

ONE_DNN = {
    torch.ops.mkldnn._linear_pointwise: lambda factor, _, *__, out_shape, **___: (
        2 * math.prod(factor) * out_shape[-1]
    )
}
"""What torch's counter does not know of the products of common/models/products.py."""


def main() -> None:
    options = _parser().parse_args()
    on = machine(options)
    rows = []
    for dtype in options.dtypes:
        cases = cases_of(options, DTYPES[dtype])
        for name, timing in interleaved(cases, options.rounds).items():
            seconds = timing.cpu if options.device == "cpu" else timing.wall
            with FlopCounterMode(display=False, custom_mapping=ONE_DNN) as counter:
                cases[name]()
            rate = counter.get_total_flops() / seconds / 1e9
            rows.append(
                {
                    "dtype": dtype,
                    "case": name,
                    "seconds": seconds,
                    "images_per_s": options.batch / seconds,
                    "gflop": counter.get_total_flops() / 1e9,
                    "of_matmul_rate": rate / on.matmul_gflops[dtype],
                }
            )
    report("teacher", options, on, rows)


def _parser():
    found = parser("images a second of the teacher")
    found.add_argument("--preset", help="a published size of LlamaGen; otherwise --width, --depth")
    found.add_argument("--width", type=int, default=384)
    found.add_argument("--depth", type=int, default=8)
    found.add_argument("--side", type=int, default=16, help="of the grid")
    found.add_argument("--vocab", type=int, default=4096)
    found.add_argument("--batch", type=int, default=16)
    found.add_argument("--dtypes", nargs="+", choices=sorted(DTYPES), default=["float32"])
    return found


def model_of(options, dtype: torch.dtype) -> Backbone:
    sizes = {"width": options.width, "depth": options.depth, "heads": options.width // 64}
    config = llamagen.Config.model_validate({"preset": options.preset} if options.preset else sizes)
    spec = SequenceSpec(options.vocab, options.side**2, (options.side, options.side), 1000)
    model = build_seeded(config, spec, 0).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(model.head.weight, std=0.1, generator=generator)
    return model.to(options.device, dtype)


def cases_of(options, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    model = model_of(options, dtype)
    batch = sampled_rows(model.spec, options.batch).to(torch.device(options.device))
    head = torch.nn.Linear(model.head.in_features, options.vocab, bias=False, device=options.device)
    head.weight.data = model.head.weight.float()
    signal, guidance = guided_hidden.Config(dtype="float16"), Guidance(scale=2.0)
    config = TeacherConfig(signal=signal)
    guided = config.model_copy(update={"guidance": guidance})
    features = torch.no_grad()(guided_features)

    order_BL, null_B = batch.plan.order_BL, torch.full_like(batch.label_B, model.spec.null_class)
    twice = DecodePlan(order_BL.repeat(2, 1), batch.plan.step_sizes)
    both_B, input_BL = torch.cat([batch.label_B, null_B]), batch.input_BL.repeat(2, 1)

    @torch.no_grad()
    def apart() -> None:
        for label_B in (batch.label_B, null_B):
            model.features(label_B, batch.input_BL, batch.plan)

    return {
        "features": partial(features, model, batch, None),
        "without entropies": partial(signal_columns, config, model, head, batch, entropy=False),
        "with entropies": partial(signal_columns, config, model, head, batch),
        "features, guided": partial(features, model, batch, guidance),
        "with entropies, guided": partial(signal_columns, guided, model, head, batch),
        "branches together": partial(torch.no_grad()(model.features), both_B, input_BL, twice),
        "branches apart": apart,
    }


if __name__ == "__main__":
    main()
