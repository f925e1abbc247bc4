"""What a run would do, before it does it: actors, places, wire, memory, and refusals.

Sizes are those of the code (deploy/planning/resources.py); the bundles that the run will ask Ray
for are tried on the hardware (deploy/planning/placement.py).
Neither files nor GPUs need to be at hand: [cluster] and `images.classes` describe them.
"""

import math
from dataclasses import dataclass, field
from itertools import groupby

from rich.console import Console
from rich.table import Table

from common.config.schema import digest
from common.randomness import Draws
from common.spec import SequenceSpec
from deploy.config import RunConfig
from deploy.planning.artifacts import check_files, data_size, generated_size, missing, sequence_spec
from deploy.planning.growth import describe_growth
from deploy.planning.hardware import MB, Hardware
from deploy.planning.placement import Gpu, Node, place_actors, require_places, several
from deploy.planning.resources import Need, Sizing
from deploy.planning.skeletons import parameters
from deploy.planning.throughput import images_per_second
from deploy.run_folder.workspace import Workspace

PREFIX_DRAWS = 256
"""Images whose prefixes are drawn to know how much the student samples."""


@dataclass(frozen=True)
class RunPlan:
    """Everything `--dry-run` prints."""

    facts: dict[str, str]
    needs: list[Need]
    nodes: list[Node]
    warnings: list[str] = field(default_factory=list)

    def show(self, target: Console) -> None:
        table = Table("actor", "count", "CPUs", "GPUs", "host memory MB", "GPU memory MB")
        for need in self.needs:
            sizes = (need.cpus, need.gpus, round(need.host_mb), round(need.gpu_mb))
            table.add_row(need.role, str(need.bundles.count), *(f"{size:g}" for size in sizes))
        target.print(table)
        lines = [f"{name}: {value}" for name, value in self.facts.items()]
        lines += _layout(self.nodes)
        lines += [f"warning: {warning}" for warning in self.warnings]
        for line in lines:
            target.print(line, soft_wrap=True, markup=False)


def plan_run(config: RunConfig, workspace: Workspace, *, timed: bool) -> RunPlan:
    """Resolve the run; `timed` is for a dry run: the target may be another machine, what is missing
    is only said, and this machine's speed is estimated.

    Raises:
        InputError: it does not fit onto the machine, or a file that is there is the wrong one.
    """
    hardware = Hardware.of(config, planned=timed)
    spec = sequence_spec(config, workspace)
    if timed:
        check_files(config, workspace, spec)
    images, variants = data_size(config, workspace)
    generated = generated_size(config, images)
    row = spec.length * (2 if spec.vocab_size <= 2**15 else 4)
    data_bytes = (images or 0) * (variants * row + 8) + generated * (row + 8)
    sizing = Sizing(config, spec, data_bytes=data_bytes)
    require_places(sizing.reservations(), hardware)  # before anything is measured
    there = hardware.gpus if hardware else 0
    needs = sizing.needs(
        lambda device, gpus: device == "cuda" or (device == "auto" and gpus + there > 0)
    )
    nodes = place_actors(needs, hardware, data_mb=sizing.data_bytes / MB) if hardware else []
    rate = images_per_second(sizing, hardware) if timed else (math.nan, "not timed")
    facts = {
        "run folder": str(workspace.root),
        "config": f"digest {digest(config)}, seed {config.seed}",
        "tokens": _describe_tokens(spec),
        "data": _describe_data(images, variants, generated, sizing.data_bytes),
        "teacher": f"{parameters(sizing.teacher):,} parameters",
        "student": f"{parameters(sizing.student):,} parameters",
        "objective": f"{config.objective.kind}: {config.objective.model_dump(mode='json')}",
        "contexts": _describe_contexts(config),
        "schedule": _describe_schedule(config),
        "budget": _describe_budget(config, spec, generated if config.reads_pairs else images),
        **_describe_wire(config, sizing, rate),
        **describe_growth(config, needs, nodes),
    }
    warnings = missing(config, workspace) + _warnings(config, spec)
    warnings += _uncounted(sizing) + _unreserved(needs) + _crowded_store(config, sizing, hardware)
    return RunPlan(facts, needs, nodes, warnings)


def _warnings(config: RunConfig, spec: SequenceSpec) -> list[str]:
    found = []
    if not spec.num_classes:
        found.append(
            "the number of classes is not known, so class embeddings are not counted; set "
            "images.classes"
        )
    if not config.rollout.sampling.is_plain:
        found.append("rollouts are not drawn from the plain student that the loss assumes")
    return found


def _uncounted(sizing: Sizing) -> list[str]:
    return [
        f"what scorers.{name} holds is not counted: {why}" for name, why in sizing.uncounted.items()
    ]


def _unreserved(needs: list[Need]) -> list[str]:
    return [
        f"{need.role} computes on a GPU but reserves none: Ray puts all {need.bundles.count} onto "
        f"a node's first GPU; set {need.bundles.fields}"
        for need in needs
        if need.gpu_mb and not need.gpus
    ]


def _crowded_store(config: RunConfig, sizing: Sizing, hardware: Hardware | None) -> list[str]:
    """A private cluster's shared memory is sized by the config; other clusters size their own."""
    wanted_mb = sizing.shared_bytes / MB
    if hardware is None or hardware.nodes > 1 or wanted_mb <= config.cluster.object_store_mb:
        return []
    return [
        f"versions, records and token data take about {wanted_mb:.0f} MB of shared memory, but "
        f"cluster.object_store_mb is {config.cluster.object_store_mb:g}: Ray will use the disk; "
        "raise it"
    ]


def _describe_tokens(spec: SequenceSpec) -> str:
    maps = f", token maps of side {', '.join(map(str, spec.scales))}" if spec.scales else ""
    classes = f"{spec.num_classes} classes" if spec.num_classes else "classes not known"
    grid = f"grid {spec.grid[0]}x{spec.grid[1]}"
    return f"vocabulary {spec.vocab_size}, {grid}{maps}, {spec.length} per image, {classes}"


def _describe_data(images: int | None, variants: int, generated: int, size: int) -> str:
    if images is None:
        return "size not known (set cluster.data_images)"
    more = f" and {generated:,} sequences of the teacher" if generated else ""
    return f"{images:,} images x {variants} variants{more}, {size / 2**30:.2f} GB in memory"


def _describe_schedule(config: RunConfig) -> str:
    schedule = config.schedule()
    mode = "ordered" if schedule.ordered else "free-running"
    return (
        f"{schedule.steps} steps of {schedule.global_batch_size} images in leases of "
        f"{schedule.lease_size}, {mode}; staleness at most {schedule.max_staleness} steps, so at "
        "most "
        f"{schedule.most_outstanding} images outstanding"
    )


def _describe_contexts(config: RunConfig) -> str:
    contexts = config.contexts
    shares = ", ".join(f"{kind} {share:.1%}" for kind, share in contexts.shares().items())
    annealed = contexts.anneal != "none"
    return f"{shares} at the end, from data alone ({contexts.anneal})" if annealed else shares


def _describe_budget(config: RunConfig, spec: SequenceSpec, images: int | None) -> str:
    """Images, epochs and tokens; somebody samples what no prefix gives."""
    total = config.learner.steps * config.learner.global_batch_size
    draws, sampled = Draws(config.seed, 1), {"student": 0.0, "teacher": 0.0}
    for index in range(PREFIX_DRAWS):
        for kind, share in config.contexts.shares_at((index + 0.5) / PREFIX_DRAWS).items():
            source = config.contexts.sources[kind]
            if source.sampler is not None:
                prefix = source.prefix(index, draws, spec=spec, step=index)
                sampled[source.sampler] += share * (spec.length - prefix) / PREFIX_DRAWS
    conditions = total // config.rollout.group.size
    epochs = f" ({conditions / images:.2f} epochs)" if images else ""
    several = f" of {conditions:,} conditions" if conditions < total else ""
    by_teacher = round(total * sampled["teacher"])
    what = "scored" if config.scoring else "read"
    return (
        f"{total:,} images{several}{epochs}, {total * spec.length:,} tokens {what}, about "
        f"{round(total * sampled['student']):,} of them sampled by the student"
        + (f" and {by_teacher:,} by the teacher" if by_teacher else "")
    )


def _describe_wire(config: RunConfig, sizing: Sizing, rate: tuple[float, str]) -> dict[str, str]:
    row, (images, source) = sizing.row_bytes, rate
    speed = source
    if not math.isnan(images):
        speed = f"{row * images / 1e6:.2f} MB/s at {images:.0f} images/s ({source})"
    step = row * config.learner.global_batch_size / 1e6
    every = " or ".join(str(phase.period) for phase in config.schedule().phases)
    every = every or str(config.learner.publish_every)
    weights = "none are sent, for nobody samples the student"
    if config.samples_student:
        reader = "worker" if sizing.filed_bytes else "node"
        weights = (
            f"{sizing.version_bytes / 1e6:.2f} MB per version and {reader}, every "
            f"{every} steps, at most {sizing.versions} versions kept"
        )
    if sizing.filed_bytes:
        weights += (
            f", as files in {config.rollout.weights_folder}: {sizing.filed_bytes / 1e6:.2f} MB of "
            "its disk at a time"
        )
    signal = config.teacher.signal.kind if config.asks_teacher else "not scored by the teacher"
    return {
        "wire": f"{row:,} bytes per image ({signal}), {step:.1f} MB per step",
        "wire rate": speed,
        "weights": weights,
    }


def _layout(nodes: list[Node]) -> list[str]:
    """What lies where; nodes and GPUs that look the same share a line."""
    lines = []
    for described, same in groupby(nodes, key=_describe_node):
        lines.append(f"{_names('node', [node.index for node in same])}: {described}")
    return lines


def _describe_node(node: Node) -> str:
    hardware = node.hardware
    taken = math.fsum(1 - gpu.free for gpu in node.gpus)
    lines = [
        f"{hardware.cpus - node.cpus:g} of {hardware.cpus:g} CPUs, "
        f"{taken:g} of {hardware.gpus} GPUs, "
        f"about {_gb(node.memory_mb, hardware.memory_mb)}: {several(node.actors) or 'no actors'}"
    ]
    busy = [(index, gpu) for index, gpu in enumerate(node.gpus) if gpu.actors]
    for described, same in groupby(busy, key=lambda pair: _describe_gpu(pair[1], hardware)):
        lines.append(f"  {_names('GPU', [index for index, _ in same])}: {described}")
    return "\n".join(lines)


def _describe_gpu(gpu: Gpu, hardware: Hardware) -> str:
    return f"{several(gpu.actors)}; about {_gb(gpu.memory_mb, hardware.gpu_memory_mb)}"


def _gb(used_mb: float, there_mb: float) -> str:
    there = "" if math.isinf(there_mb) else f" of {there_mb / 1024:.1f}"
    return f"{used_mb / 1024:.1f}{there} GB"


def _names(word: str, indices: list[int]) -> str:
    first, last = indices[0], indices[-1]
    return f"{word} {first}" if first == last else f"{word}s {first}-{last}"
