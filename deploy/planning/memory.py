"""How much memory the roles' computations take, without doing them.

The sampler, the teacher's scoring pass and the learner run as they are, on models without content
(deploy/planning/blank_tensors.py). So caches, canvases, activations and chunks are those of the
code itself, whatever the backbone and the objective.

Shape letters: B sequences, L slots, C width.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from common.device import precision
from common.exchange.provenance import STUDENT, Policy
from common.exchange.trajectory import TrajectoryBatch, to_arrow
from common.models.backbone import Backbone
from common.models.plan import natural_plan
from common.models.velocity_model import VelocityModel
from common.spec import SequenceSpec
from deploy.config import RunConfig
from deploy.planning.blank_shards import blank_layout
from deploy.planning.blank_tensors import META, Kernels, Meter, is_on_cpu, peak_bytes
from deploy.planning.skeletons import (
    BlankImages,
    BlankModelFile,
    BlankScorerFiles,
    blank_student,
    classifier_like,
    lpips_like,
    tokenizer_like,
)
from deploy.stages.learner_rank import (
    learner_of,
    looked_through,
    trained_positions,
)
from learner.alternating_config import AlternatingConfig
from learner.alternation import Alternation
from learner.config import LearnerConfig
from learner.learner import Learner
from learner.objective import Student
from learner.process_group import SingleProcess
from learner.relaxation import ClusterMap, RelaxationConfig, number_by_first_code
from learner.resources import Resources
from learner.teacher_targets import TeacherTargets
from rollout.sampler import SamplingConfig
from teacher_server.scorer import ScorerFiles
from teacher_server.teacher import signal_columns


def scoring_images(config: RunConfig, length: int) -> int:
    """Most images of `length` tokens in one forward pass of a teacher: requests are joined
    whole."""
    lease, batching = config.rollout.batch_size, config.teacher.batching
    if config.learner.ordered or batching.wait_ms == 0:
        return lease
    waiting = config.rollout.workers * max(1, config.rollout.in_flight)
    fitting = max(1, batching.max_tokens // (lease * length))
    return lease * min(-(-batching.max_images // lease), fitting, waiting)


def scoring_bytes(config: RunConfig, teacher: Backbone, head: nn.Linear) -> int:
    """Activations and signal of one batch, entropies where they are read."""
    settings, reads = config.teacher, config.reads_entropy
    rows = (STUDENT,) * scoring_images(config, teacher.spec.length)
    batch = blank_batch(teacher, rows, config.rollout.sampling)
    scored = partial(signal_columns, settings, teacher, head, batch, entropy=reads)
    return peak_bytes(scored, on_cpu=is_on_cpu(settings.device, settings.gpus))


def scorer_files(config: RunConfig, spec: SequenceSpec, device: torch.device) -> ScorerFiles:
    """For scorers that are built here, and not on the cluster."""
    teacher, architecture = config.teacher, config.models.teacher
    file = BlankModelFile(Path(), "models.teacher", architecture, spec, Path(), device=device)
    here = teacher.model_copy(update={"device": "cpu"})
    reads = config.reads_entropy
    images = BlankImages(config, device)
    return BlankScorerFiles(
        *(here, file, config.learner.ordered),
        entropy=reads,
        images=images,
        run=config,
        device=device,
    )


def chain_bytes(
    config: RunConfig, name: str, spec: SequenceSpec, head: nn.Linear
) -> tuple[int, int]:
    """(what a scorer of the chain holds, what it takes beside to score a lease); `head` is the
    teacher's.

    Raises:
        InputError: it reads a file that is not there.
    """
    record = to_arrow(scored_lease(config, spec, head))
    with Kernels(torch.float32), Meter() as meter:
        built = config.scorers[name].build(scorer_files(config, spec, META))
    return meter.alive, peak_bytes(lambda: built.score(record))


def scored_lease(config: RunConfig, spec: SequenceSpec, head: nn.Linear) -> TrajectoryBatch:
    """A lease as the teacher sends it on, of the first code and a signal of zeros."""
    images, sampling = config.rollout.batch_size, config.rollout.sampling
    batch = blank_batch(blank_student(config, spec), (STUDENT,) * images, sampling)
    columns: dict[str, Tensor] = {}
    peak_bytes(lambda: columns.update(_scored(config, batch, head).signal))
    columns = {name: torch.zeros(like.shape, dtype=like.dtype) for name, like in columns.items()}
    return batch.scored(columns, {"head": ""})


class _Rank(SingleProcess):
    """One learner of several: what it holds to speak with the others, without them."""

    def __init__(self, world: int) -> None:
        self.world = world


def learning_bytes(config: RunConfig, student: Student, head: nn.Linear) -> int:
    """What a learner holds beside its student's weights and its teacher's head: average, moments,
    gradients, activations and logits, in a step after its first update; with its share of the
    weights, where each rank has one.

    That update makes the moments. The step meets every policy beside gradients.
    """
    settings, config = config.learner, _of_short_cycles(config)

    def run() -> None:
        learner = planned_learner(config, student, head)
        learner.update(torch.zeros((), device=head.weight.device))
        for rows in _steps(settings, policies_of(config), config.rollout.group.size):
            batch = grouped(config, blank_batch(student, rows, config.rollout.sampling))
            for _ in range(steps_of_a_cycle(config)):
                learner.step(_scored(config, batch, head))

    return peak_bytes(run, precision(settings.dtype))


def policies_of(config: RunConfig) -> list[Policy]:
    return [name for name, share in config.contexts.policies().items() if share]


def steps_of_a_cycle(config: RunConfig) -> int:
    """Steps after which everything that a learner does was done."""
    return max([phase.period for phase in config.objective.phases()[:1]], default=1)


def _of_short_cycles(config: RunConfig) -> RunConfig:
    """With one step of a guidance network in a cycle: the others hold the same."""
    objective = config.objective
    if not isinstance(objective, AlternatingConfig):
        return config
    once = objective.guidance.model_copy(update={"steps": 1})
    return config.model_copy(update={"objective": objective.model_copy(update={"guidance": once})})


def planned_learner(config: RunConfig, student: Student, head: nn.Linear) -> Learner | Alternation:
    """One of the run's ranks where the models are; `head` is the teacher's, digest ""."""
    # A blank student stays blank, and what is compiled for it is of no use.
    here = config.learner.model_copy(update={"device": "cpu", "compile": False})
    guidance, objective = None, config.objective
    if isinstance(objective, AlternatingConfig):
        guidance = copy.deepcopy(student)
        objective = objective.model_copy(update={"mismatch": 1.0})  # nobody made blank rows
    return learner_of(
        config.model_copy(update={"learner": here, "objective": objective}),
        student,
        guidance,
        resources_like(config, student.spec, head, guidance),
        seed=config.seed,
        contexts=tuple(policies_of(config)),
        teacher=TeacherTargets(config.teacher.signal, head, ""),
        ranks=_Rank(config.learner.world_size),
        layout=blank_layout,
    )


def _steps(
    settings: LearnerConfig, policies: Sequence[Policy], group: int
) -> list[Sequence[Policy]]:
    """The rows of each step: micro-batches of one policy, which have the most to compute, in whole
    groups."""
    share = settings.global_batch_size // settings.world_size
    images = -(-min(settings.micro_batch, share) // group) * group
    if share <= images:
        return [[policy for _ in range(images)] for policy in policies]
    return [[policy for policy in (*policies, policies[0]) for _ in range(images)]]


def resources_like(
    config: RunConfig, spec: SequenceSpec, head: nn.Linear, guidance: Student | None = None
) -> Resources:
    """What the objective declares, of the run's shapes and before anything is learned or loaded;
    `head` is the teacher's."""
    device = head.weight.device

    def clusters(relaxation: RelaxationConfig) -> ClusterMap | None:
        if relaxation.factor == 1:
            return None
        count = spec.vocab_size // relaxation.factor
        return number_by_first_code(torch.arange(spec.vocab_size) % count)

    found = Resources(
        torch.device("cpu"),
        codebook=lambda: tokenizer_like(config, device).codebook_VD,
        clusters=clusters,
        teacher_head=lambda: head,
        render=lambda _: tokenizer_like(config, device).image_of,
        perceptual=lambda _: classifier_like(config, spec, device).perceptual,
        lpips=lambda net, _: lpips_like(net, device),
        positions=lambda: trained_positions(config),
        guidance=partial(looked_through, guidance),
    )
    return found.only(config.objective.resources())


def _scored(config: RunConfig, batch: TrajectoryBatch, head: nn.Linear) -> TrajectoryBatch:
    """As a teacher sends it, if it is asked: wide columns are as blank as its head, the entropy is
    that of a teacher that is sure of itself, so no gate closes."""
    if config.scoring and not config.asks_teacher:
        return judged(config, batch)
    shape = *batch.token_BL.shape, head.in_features
    hidden_BLC = torch.zeros(shape, device=head.weight.device)
    with torch.no_grad():
        signal = config.teacher.signal.encode(hidden_BLC, head)
    if config.reads_entropy:
        signal["entropy"] = torch.zeros(batch.token_BL.shape)
    return judged(config, batch.scored(signal, {"head": ""}))


def judged(config: RunConfig, batch: TrajectoryBatch) -> TrajectoryBatch:
    """With zeros for what scorers beside the teacher would say."""
    signal, sequence = dict(batch.signal), dict(batch.sequence)
    for scorer in config.scoring.values():
        signal |= {name: torch.zeros(batch.token_BL.shape) for name in scorer.adds_to_tokens()}
        sequence |= {name: torch.zeros(len(batch.id_B)) for name in scorer.sequence_columns}
    return replace(batch, signal=signal, sequence=sequence)


def grouped(config: RunConfig, batch: TrajectoryBatch) -> TrajectoryBatch:
    """Its rows as samples of conditions, as many of each as the run has; what is read of draws of
    one pass is one sequence."""
    size, id_B = config.rollout.group.size, batch.id_B
    if size == 1:
        return batch
    input_BL = batch.token_BL if config.objective.needs_one_input else None
    groups = {"group_B": id_B // size, "member_B": id_B % size, "input_token_BL": input_BL}
    return replace(batch, **groups, facts={"group_size": str(size)})


def blank_batch(
    model: Student, policies: Sequence[Policy], sampling: SamplingConfig, *, prefix: int = 0
) -> TrajectoryBatch:
    """Sequences of the first code, in the order in which they are decoded; those of a one-pass
    student with seeds of noise."""
    images, seed_B, vector_BLD = len(policies), None, None
    if isinstance(model, Backbone):
        plan = model.plan(range(images), sampling.decoding)
    else:
        plan, seed_B = natural_plan(images, model.spec), torch.arange(images)
    token_BL = torch.zeros(plan.order_BL.shape, dtype=torch.long)
    if isinstance(model, VelocityModel):
        vector_BLD = torch.zeros(*token_BL.shape, model.code_width)
    zero_B = torch.zeros(images, dtype=torch.long)
    return TrajectoryBatch(
        spec=model.spec,
        id_B=torch.arange(images),
        version_B=zero_B,
        label_B=zero_B,
        context=tuple(policies),
        policy=tuple(policies),
        law=("exact",) * images,
        prefix_B=torch.full((images,), prefix),
        plan=plan,
        token_BL=token_BL,
        logprob_BL=token_BL.float(),
        seed_B=seed_B,
        vector_BLD=vector_BLD,
    )
