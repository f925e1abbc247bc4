"""How sure a teacher is, slot by slot, in contexts of data and in those of students.

    python -m benchmarks.drift runs/drift --out drift.json --figure drift.png

RUN is the folder of a study (studies/drift): its teacher, its test tokens, and the averaged student
of every finished cell. Confidence is 1 - H / log V of the teacher's next code, in free samples of a
student with one noise and the same labels for all, and in as many sequences of held-out data. A
student whose samples leave the teacher less sure than data does has left what it was trained on.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import machine, parser, report
from common.artifacts.backbone_file import load_backbone
from common.data.tokens import load_tokens
from common.exchange.entropy import entropy_of
from common.models.backbone import Backbone
from deploy.report.grids import spread
from deploy.study.page.axes import COLOURS, clean, png, pyplot
from learner.gate import confidence
from rollout.evaluation.metrics import balanced_labels, image_seeds
from rollout.sampler import SamplingConfig, sample

SLOTS = (32, 64, 96, 128, 160, 192, 224)
BATCH = 50
SAMPLING = SamplingConfig()
SMOOTH = 16
"""Slots that a point of the figure is the mean of: one row of CIFAR-10's grid."""


def main() -> None:
    options = _parser().parse_args()
    on = machine(options)
    teacher, _ = load_backbone(options.run / "start" / "teacher.safetensors")
    found = {"data": [_of_data(teacher, options)]}
    found |= {"base": [_of_student(teacher, options.run / "start", "student_before", options)]}
    by_method: dict[str, list[Tensor]] = defaultdict(list)
    for cell in sorted((options.run / "cells").glob("*/*/cell.json")):
        if (cell.parent / "student_ema.safetensors").exists() and cell.parts[-3] != "base":
            here = _of_student(teacher, cell.parent, "student_ema", options)
            by_method[cell.parts[-3]].append(here)
            print(cell.parts[-3], cell.parts[-2], f"{here.mean():.4f}", flush=True)
    rows = [_row(name, curves) for name, curves in (found | by_method).items()]
    report("drift", options, on, rows)
    if options.figure is not None:
        options.figure.write_bytes(_drawn(found | by_method))


def _parser():
    found = parser("the teacher's confidence by slot")
    found.add_argument("run", type=Path, help="folder of a study")
    found.add_argument("--samples", type=int, default=300)
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--figure", type=Path, help="draw the curves")
    return found


def _of_data(teacher: Backbone, options: Any) -> Tensor:
    """Mean confidence_L on held-out sequences."""
    data = load_tokens(options.run / "start" / "tokens" / "test.parquet")
    chosen = torch.tensor(spread(len(data), min(len(data), options.samples)))
    cell_NL = data.token_NAL[chosen, 0].long()
    return _mean(teacher, data.label_N[chosen].long(), cell_NL, range(len(chosen)))


def _of_student(teacher: Backbone, folder: Path, name: str, options: Any) -> Tensor:
    """Mean confidence_L on free samples."""
    student, _ = load_backbone(folder / f"{name}.safetensors")
    label_N = balanced_labels(options.samples, torch.arange(student.spec.num_classes))
    seeds = image_seeds(options.seed, len(label_N))
    cells = [
        sample(student, label_N[first : first + BATCH], seeds[first : first + BATCH], SAMPLING)
        for first in range(0, len(seeds), BATCH)
    ]
    return _mean(teacher, label_N, torch.cat([found.cell_BL for found in cells]), seeds)


@torch.no_grad()
def _mean(teacher: Backbone, label_N: Tensor, cell_NL: Tensor, seeds: Any) -> Tensor:
    total_L = torch.zeros(teacher.spec.length, dtype=torch.double)
    for first in range(0, len(label_N), BATCH):
        rows = slice(first, first + BATCH)
        plan = teacher.plan(seeds[rows], SAMPLING.decoding)
        logit_BLV = teacher(label_N[rows], plan.to_slots(cell_NL[rows]), plan)
        entropy_BL = entropy_of(logit_BLV.float().log_softmax(-1))
        total_L += confidence(entropy_BL, teacher.spec.vocab_size).double().sum(0)
    return total_L / len(label_N)


def _row(name: str, curves: list[Tensor]) -> dict[str, object]:
    """Means over the seeds: of all slots but the first, whose spread is given too, and at some,
    with their neighbours."""
    means = [float(curve[1:].mean()) for curve in curves]
    mean = sum(means) / len(means)
    spread_of = math.sqrt(sum((value - mean) ** 2 for value in means) / max(1, len(means) - 1))
    curve_L = torch.stack(curves).mean(0)
    at = {str(slot): float(curve_L[slot - 4 : slot + 4].mean()) for slot in SLOTS}
    return {"contexts": name, "seeds": len(curves), "mean": mean, "sd": spread_of, **at}


def _drawn(found: Mapping[str, list[Tensor]]) -> bytes:
    figure, axis = pyplot().subplots(figsize=(8, 4.5), layout="constrained")
    styles = {"data": ("#222222", "-"), "base": ("#999999", "--")}
    methods = [name for name in found if name not in styles]
    colours = {name: COLOURS[at % len(COLOURS)] for at, name in enumerate(methods)}
    for name, curves in found.items():
        rows_RS = torch.stack(curves).mean(0).view(-1, SMOOTH)
        colour, style = styles.get(name, (colours.get(name, ""), "-"))
        if name in methods and methods.index(name) >= len(COLOURS):
            style = ":"
        slots = [SMOOTH * at + SMOOTH / 2 for at in range(len(rows_RS))]
        axis.plot(slots, rows_RS.mean(1), style, color=colour, label=name, linewidth=1.4)
    axis.set_xlabel(f"slot (means of {SMOOTH})")
    axis.set_ylabel("the teacher's confidence, 1 - H / log V")
    axis.legend(fontsize=8, ncols=2, frameon=False)
    clean(axis)
    return png(figure)


if __name__ == "__main__":
    main()
