"""Steps a second of VarKD against plain KD, as whole runs: over Ray and in one process.

    python -m benchmarks.end_to_end --out end_to_end.json
    python -m benchmarks.end_to_end --config large --rounds 2

Both learn from the same teacher and begin with the same student; VarKD samples every sequence with
the student (student contexts only), KD reads data. Runs take turns: VarKD, KD, KD, VarKD, ... The
rate is that of the steps after the first ten, by the times in metrics.jsonl, so start-up is not in
it; `wait` is how long the learner waited in a step, `rollout` and `teacher` what the records of a
step took there, in seconds. `ratio` is VarKD's rate over KD's: the paper has 0.057 (0.20 to 3.5);
`of_matmul_rate` the share of what all cores, or the GPU (`--device cuda`), multiply in the
learner's precision.

small: 64 tokens, V=512, 2.7 M -> 0.4 M, 64 images a step. large: 256 tokens, V=4096, 17 M -> 3.4 M,
16 images a step. llamagen: 256 tokens, V=16384, L (343 M) -> B (111 M), bfloat16, 256 images a
step, all roles on one GPU; llamagen-384: the same with 576 tokens. Where a GPU is shared, CUDA's
multi-process service may run beside (docs/running.md, "One GPU").
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.arithmetic import forward_gflop
from benchmarks.measuring import Machine, machine, parser, report
from common.models.backbone import Backbone, build_seeded
from common.models.backbones import llamagen
from common.outline import outlines
from common.spec import SequenceSpec

WARM = 10
"""Steps before anything is measured."""
SHARED = {
    "images.kind": "folder",
    "images.channels": "3",
    "pretrain.teacher.steps": "4",
    "pretrain.student.steps": "2",
    "learner.checkpoint_every": "0",
    "teacher.signal.kind": "guided_hidden",
    "teacher.signal.dtype": "float16",
}
SIZES = {
    "small": {
        "images.size": "32",
        "tokenizer.patch": "4",
        "tokenizer.vocab_size": "512",
        "models.teacher.width": "192",
        "models.teacher.depth": "6",
        "models.teacher.heads": "6",
        "models.student.width": "96",
        "models.student.depth": "3",
        "models.student.heads": "4",
        "rollout.batch_size": "32",
        "learner.global_batch_size": "64",
        "learner.micro_batch": "64",
    },
    "large": {
        "images.size": "64",
        "tokenizer.patch": "4",
        "tokenizer.vocab_size": "4096",
        "models.teacher.width": "384",
        "models.teacher.depth": "8",
        "models.teacher.heads": "6",
        "models.student.width": "192",
        "models.student.depth": "5",
        "models.student.heads": "6",
        "rollout.batch_size": "8",
        "learner.global_batch_size": "16",
        "learner.micro_batch": "16",
    },
    "llamagen": {
        "images.size": "64",
        "tokenizer.patch": "4",
        "tokenizer.vocab_size": "16384",
        "tokenizer.fit_patches": "17000",  # of noise: more would take minutes
        "models.teacher.width": "1024",
        "models.teacher.depth": "24",
        "models.teacher.heads": "16",
        "models.teacher.multiple_of": "256",
        "models.student.width": "768",
        "models.student.depth": "12",
        "models.student.heads": "12",
        "models.student.multiple_of": "256",
        "pretrain.teacher.batch_size": "16",
        "pretrain.student.batch_size": "16",
        "teacher.dtype": "bfloat16",
        "teacher.gpus": "0.3",
        "rollout.dtype": "bfloat16",
        "rollout.workers": "1",
        "rollout.gpus": "0.3",
        "rollout.batch_size": "256",
        "learner.global_batch_size": "256",
        "learner.micro_batch": "64",
        "learner.chunk_tokens": "8192",
        "learner.dtype": "bfloat16",
        "learner.compile": "true",
        "learner.gpus": "0.4",
        "cluster.gpus": "1",
        "cluster.object_store_mb": "4096",
    },
}
SIZES["llamagen-384"] = SIZES["llamagen"] | {"images.size": "96"}
KINDS = {
    "varkd": {
        "objective.kind": "varkd",
        "objective.gate.tau": "0",
        "objective.relaxation.mix": "0.5",
        "contexts.sources.data.ratio": "0",
    },
    "kd": {"objective.kind": "kd", "contexts.sources.student.ratio": "0"},
}
"""An untrained teacher is unsure of everything, so a gate would leave nothing to learn from; and
without data a relaxed loss needs a share over single codes."""


def main() -> None:
    options = _parser().parse_args()
    on = machine(options)
    rows = []
    for size in options.config:
        with tempfile.TemporaryDirectory(prefix="vb-", dir="/tmp") as folder:
            base = Path(folder) / "base"
            write_images(Path(folder) / "images", int(SIZES[size]["images.size"]))
            settings = _settings(options, size, **{"images.train": f"{folder}/images"})
            _varkd("tokenize", "smoke", base, [*settings, "--local"])
            _varkd("pretrain", str(base), base, [])
            for where in options.where:
                rows += with_shares(rows_of(options, size, where, base), options, size, on)
    report("end_to_end", options, on, rows)


def _parser():
    found = parser("steps a second of VarKD against KD")
    found.add_argument("--config", nargs="+", choices=sorted(SIZES), default=["small"])
    found.add_argument("--where", nargs="+", choices=["ray", "local"], default=["ray", "local"])
    found.add_argument("--steps", type=int, default=40)
    found.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="for all runs")
    return found


def _settings(options, size: str, **more: str) -> list[str]:
    tree = SHARED | SIZES[size] | {"learner.steps": str(options.steps)} | more
    return [f"{key}={value}" for key, value in tree.items()] + options.set


def write_images(folder: Path, side: int) -> None:
    """160 images of noise in ten classes: as many kinds of patches as a vocabulary asks for."""
    generator = np.random.default_rng(0)
    for name, label in product(range(16), range(10)):
        pixel = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
        path = folder / f"class{label}" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixel).save(path)


def rows_of(options, size: str, where: str, base: Path) -> list[dict[str, object]]:
    """Both kinds in turn; a row each, of the medians over the rounds."""
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for at in range(options.rounds):
        for kind in KINDS if at % 2 == 0 else reversed(KINDS):
            out = base.parent / f"{where}-{kind}-{at}"
            settings = [f"{key}={value}" for key, value in KINDS[kind].items()]
            local = ["--local"] if where == "local" else []
            _varkd("distill", str(base), out, [*settings, "--from", str(base), *local])
            found[kind].append(figures(out / "metrics.jsonl"))
    rows = []
    for kind, runs in found.items():
        medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        rows.append({"config": size, "where": where, "kind": kind, **medians, "ratio": None})
    rows[0]["ratio"] = rows[0]["steps_per_s"] / rows[1]["steps_per_s"]
    return rows


def with_shares(
    rows: list[dict[str, object]], options, size: str, on: Machine
) -> list[dict[str, object]]:
    """With the operations of a step, and their share of what all cores, or the GPU, could do."""
    given = dict(entry.split("=", 1) for entry in options.set)
    values = {key: given.get(key, value) for key, value in SIZES[size].items()}
    dtype = given.get("learner.dtype", values.get("learner.dtype", "float32"))
    most = on.matmul_gflops[dtype] * (on.cores if on.device == "cpu" else 1)
    for row in rows:
        gflop = step_gflop(values, str(row["kind"]))
        row |= {"gflop": gflop, "of_matmul_rate": gflop * float(str(row["steps_per_s"])) / most}
    return rows


def step_gflop(values: Mapping[str, str], kind: str) -> float:
    """The teacher forward, its head at the learner; the student forward and twice that backward,
    and once more where it samples."""
    side = int(values["images.size"]) // int(values["tokenizer.patch"])
    spec = SequenceSpec(int(values["tokenizer.vocab_size"]), side**2, (side, side), 10)
    teacher, student = (
        _outline(f"models.{role}.", values, spec) for role in ("teacher", "student")
    )
    passes = 4 if kind == "varkd" else 3
    image = forward_gflop(teacher) + passes * forward_gflop(student)
    return int(values["learner.global_batch_size"]) * image


def _outline(section: str, values: Mapping[str, str], spec: SequenceSpec) -> Backbone:
    sizes = {
        key.removeprefix(section): int(value)
        for key, value in values.items()
        if key.startswith(section)
    }
    with outlines():
        return build_seeded(llamagen.Config.model_validate(sizes), spec, 0)


def figures(metrics: Path) -> dict[str, float]:
    """Rate and medians of one run, after its first steps."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    seconds = rows[-1]["time"] - rows[WARM - 1]["time"]
    found = {"steps_per_s": (len(rows) - WARM) / seconds}
    for name in ("wait", "step", "rollout", "teacher"):
        found[name] = statistics.median(row[f"seconds/{name}"] for row in rows[WARM:])
    return found


def _varkd(command: str, config: str, out: Path, words: Sequence[str]) -> None:
    """One command of ours in a process of its own; what it says is shown where it fails."""
    call = [sys.executable, "-m", "deploy.main", command, config, "--out", str(out), *words]
    done = subprocess.run(call, env=os.environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(call)}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
