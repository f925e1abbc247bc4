"""A learner's step: images a second, and its share of the machine's matmul rate.

    python -m benchmarks.learner --out learner.json
    python -m benchmarks.learner --device cuda --dtype bfloat16 --preset B --teacher-width 1024 \\
        --side 24 --vocab 16384 --batch 64 --chunk 8192 --compile

Random weights, records as a teacher server sends them (hidden vectors in float16). VarKD over
V / 4 clusters with every slot open, `kd` for comparison; `compiled` has learner.compile. The
operations counted are those of the student's forward and backward pass and of both heads.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from benchmarks.arithmetic import forward_gflop
from benchmarks.measuring import interleaved, machine, parser, report
from benchmarks.rows import sampled_rows
from common.exchange.signals import guided_hidden
from common.exchange.trajectory import TrajectoryBatch
from common.files.tensors import state_digest
from common.models.backbone import Backbone, build_seeded
from common.models.backbones import llamagen
from common.models.packed_linear import Linear
from common.spec import SequenceSpec
from learner.config import LearnerConfig
from learner.gate import GateConfig
from learner.learner import Learner
from learner.objective import ObjectiveConfig
from learner.objectives import kd, varkd
from learner.relaxation import ClusterMap
from learner.resources import Resources
from learner.teacher_targets import TeacherTargets


def main() -> None:
    options = _parser().parse_args()
    on = machine(options)
    cases = cases_of(options)
    gflop = step_gflop(student_of(options), options)
    rows = []
    for name, timing in interleaved(cases, options.rounds).items():
        seconds = timing.cpu if options.device == "cpu" else timing.wall
        rows.append(
            {
                "case": name,
                "seconds": seconds,
                "images_per_s": options.batch / seconds,
                "gflop": gflop,
                "of_matmul_rate": gflop / seconds / on.matmul_gflops[options.dtype],
            }
        )
    report("learner", options, on, rows)


def _parser():
    found = parser("images a second of the learner")
    found.add_argument("--preset", help="a published size of LlamaGen; otherwise --width, --depth")
    found.add_argument("--width", type=int, default=192)
    found.add_argument("--depth", type=int, default=6)
    found.add_argument("--teacher-width", type=int, default=384)
    found.add_argument("--side", type=int, default=16, help="of the grid")
    found.add_argument("--vocab", type=int, default=4096)
    found.add_argument("--batch", type=int, default=16)
    found.add_argument("--chunk", type=int, default=LearnerConfig().chunk_tokens)
    found.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    compiled = "with learner.compile as well, or with it alone"
    found.add_argument(
        "--compile", nargs="?", const="also", choices=["also", "only"], help=compiled
    )
    return found


def student_of(options) -> Backbone:
    sizes = {"width": options.width, "depth": options.depth, "heads": options.width // 32}
    config = llamagen.Config.model_validate({"preset": options.preset} if options.preset else sizes)
    spec = SequenceSpec(options.vocab, options.side**2, (options.side, options.side), 1000)
    return build_seeded(config, spec, 0)


def cases_of(options) -> dict[str, Callable[[], object]]:
    """Every step with one micro-batch, of whole sequences by the student."""
    codes, width = options.vocab, options.teacher_width
    head = Linear(width, codes, bias=False)
    torch.nn.init.normal_(head.weight, std=2 / width**0.5)
    targets = TeacherTargets(guided_hidden.Config(dtype="float16"), head, state_digest(head))
    clusters = ClusterMap(torch.arange(codes) // 4, codes // 4)
    resources = Resources(torch.device(options.device), clusters=lambda relaxation: clusters)
    objectives: dict[str, ObjectiveConfig] = {
        "varkd": varkd.Config(gate=GateConfig(tau=0)),
        "kd": kd.Config(),
    }
    found: dict[str, Callable[[], object]] = {}
    for compiles in {"also": (False, True), "only": (True,)}.get(options.compile, (False,)):
        for name, objective in objectives.items():
            learner = Learner(
                LearnerConfig(
                    steps=10**6,
                    global_batch_size=options.batch,
                    micro_batch=options.batch,
                    chunk_tokens=options.chunk,
                    device=options.device,
                    dtype=options.dtype,
                    compile=compiles,
                ),
                objective.build(resources),
                student_of(options),
                seed=0,
                contexts=("student",),
                teacher=targets,
            )
            batch = scored(options, targets, width)
            if options.device == "cuda":
                batch = batch.pinned()  # as learner/intake.py gives it
            found[name + ", compiled" * compiles] = partial(learner.step, batch)
    return found


def scored(options, targets: TeacherTargets, width: int) -> TrajectoryBatch:
    """A batch with hidden vectors of unit size, as a norm leaves them."""
    side, generator = options.side, torch.Generator().manual_seed(1)
    rows = sampled_rows(SequenceSpec(options.vocab, side**2, (side, side), 1000), options.batch)
    hidden_BLC = torch.randn(options.batch, side**2, width, generator=generator).half()
    entropy_BL = torch.rand(options.batch, side**2, generator=generator)
    signal = {"hidden": hidden_BLC, "entropy": entropy_BL}
    return replace(rows, signal=signal, facts={"head": targets.digest})


def step_gflop(student: Backbone, options) -> float:
    """Products of a forward pass, twice that backward, and the teacher's head once."""
    head = 2 * options.teacher_width * options.vocab * options.side**2 / 1e9
    return options.batch * (3 * forward_gflop(student) + head)


if __name__ == "__main__":
    main()
