"""Builds one learner rank from a config and files; the same for one process and for Ray Train."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Unpack

import torch

from common.device import place
from common.exchange.buffer import Buffer
from common.exchange.segments import SegmentWriter
from common.files.snapshots import Snapshots
from common.files.tensors import state_digest
from common.models.distilled_decoding import DistilledDecoder
from common.models.one_pass import OnePassConfig
from common.models.velocity_model import VelocityModel
from common.randomness import derive_seed
from common.tokenization.tokenizer import load_tokenizer
from deploy.config import RunConfig
from deploy.pipeline import Services
from deploy.run_folder.lock import Tenancy
from deploy.run_folder.start import Start, run_snapshots, take_over
from deploy.run_folder.workspace import Workspace
from deploy.stages.milestones import Milestones
from deploy.stages.perceptual import classifier_features
from deploy.stages.student_files import store_students
from learner.alternating_config import AlternatingConfig
from learner.alternation import Alternation, LearnerParts, alternation
from learner.checkpoints import Checkpoints
from learner.keeping import KeptRecords
from learner.learner import Learner
from learner.objective import Student
from learner.process_group import ProcessGroup, first_says
from learner.relaxation import ClusterMap, RelaxationConfig, run_clusters
from learner.resources import Render, Resources
from learner.spread_checkpoints import checkpoints_of, own_part
from learner.teacher_targets import TeacherTargets
from learner.train import Outcome, Trained, Trainer


def learn(
    config: RunConfig,
    root: Path,
    services: Services,
    ranks: ProcessGroup,
    start: Start,
    while_waiting: Callable[[], object] | None = None,
) -> Outcome:
    """Train one rank to the end of the schedule, from where the run starts.

    A learner that begins again in the middle of the run goes on from the run's newest snapshot.
    """
    workspace = Workspace(root)
    snapshots = run_snapshots(workspace, start.identity, config.learner.keep_last, Tenancy(root))
    is_begun = services.ledger.state()["step"] > start.step
    step = first_says(ranks, snapshots.newest_step() or 0 if is_begun else start.step)
    learner = build_learner(config, workspace, ranks)
    source = _kept(config, workspace, services, ranks)
    trainer = Trainer(
        learner,
        config.schedule(),
        buffer=source,
        weights=services.weights,
        ledger=services.ledger,
        metrics=services.hub,
        checkpoints=_checkpoints(config, snapshots, learner, ranks),
        found=snapshots.load(step, own=own_part(learner, ranks)) if step else None,
        ranks=ranks,
        weights_dtype=config.rollout.dtype if config.samples_student else None,
        stall_seconds=config.learner.stall_seconds,
        while_waiting=while_waiting,
        take_over=None if is_begun else partial(take_over, config, workspace, start),
        after_step=Milestones(config, workspace, ranks),
    )
    outcome = trainer.run()
    if outcome.steps > start.step:
        if ranks.rank == 0 or learner.is_spread:
            store_students(config, workspace, learner.states(), outcome.steps)
        _flush(source)
    return outcome


def _kept(
    config: RunConfig, workspace: Workspace, services: Services, ranks: ProcessGroup
) -> Buffer | KeptRecords:
    """The buffer, with what is taken from it kept where the run is to keep it."""
    if config.buffer.keep_gb is None or config.rollout.replay is not None:
        return services.buffer
    most = config.buffer.keep_gb * 2**30 / ranks.world
    return KeptRecords(services.buffer, SegmentWriter(workspace.rollouts, ranks.rank, most))


def _flush(source: Buffer | KeptRecords) -> None:
    if isinstance(source, KeptRecords):
        source.flush()


def imported_late(config: RunConfig, workspace: Workspace) -> tuple[str, ...]:
    """Modules that a learner imports only where it makes clusters of codes: for over a second."""
    makes = "clusters" in config.objective.resources() and not workspace.clusters.exists()
    return ("sklearn.cluster",) if makes else ()


def _checkpoints(
    config: RunConfig, snapshots: Snapshots, learner: Trained, ranks: ProcessGroup
) -> Checkpoints:
    every, minutes = config.learner.checkpoint_every, config.learner.checkpoint_minutes
    return checkpoints_of(learner, snapshots, ranks, every=every, minutes=minutes)


def build_learner(config: RunConfig, workspace: Workspace, ranks: ProcessGroup) -> Trained:
    """Student, objective with its resources and the teacher's head, all checked against each
    other; with a guidance network, which begins as the student does, where there is one."""
    student, objective = starting_student(config, workspace), config.objective
    guidance = copy.deepcopy(student) if isinstance(objective, AlternatingConfig) else None
    head = workspace.model(config, "teacher").head()
    return learner_of(
        config,
        student,
        guidance,
        run_resources(config, workspace, ranks, guidance),
        seed=derive_seed(config.seed, "learner"),
        contexts=tuple(sorted(config.contexts.sources)),
        teacher=TeacherTargets(config.teacher.signal, head, state_digest(head)),
        ranks=ranks,
        conditions=config.conditions.table(student.spec.num_classes),
    )


def learner_of(
    config: RunConfig,
    student: Student,
    guidance: Student | None,
    resources: Resources,
    *,
    seed: int,
    **parts: Unpack[LearnerParts],
) -> Learner | Alternation:
    """One learner, or two in turns where there is a guidance network."""
    objective = config.objective
    if isinstance(objective, AlternatingConfig):
        assert isinstance(student, VelocityModel)
        assert isinstance(guidance, VelocityModel)
        networks = student, guidance
        return alternation(config.learner, objective, resources, networks, seed=seed, **parts)
    return Learner(config.learner, objective.build(resources), student, seed=seed, **parts)


def starting_student(config: RunConfig, workspace: Workspace) -> Student:
    """Before the first step: the base student's file, or a one-pass student that takes over what
    the teacher has, with the rest drawn from the run's seed.

    Raises:
        InputError: a file is missing or holds something else, or teacher and codes do not fit.
    """
    if workspace.has_model(config, "student_before"):
        return workspace.model(config, "student_before").load(torch.float32)
    architecture, teacher = config.models.student, workspace.model(config, "teacher")
    assert isinstance(architecture, OnePassConfig)
    code_VD = load_tokenizer(workspace.existing_tokenizer()).codebook_VD
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(config.seed, "start-student"))
        student = architecture.build(teacher.spec, code_VD)
    assert isinstance(student, DistilledDecoder | VelocityModel)
    student.start_from(teacher.load(torch.float32))
    return student


def run_resources(
    config: RunConfig, workspace: Workspace, ranks: ProcessGroup, guidance: Student | None = None
) -> Resources:
    """What the objective declares, from the files of the run, on the learner's device."""
    found = Resources(
        place(config.learner.device),
        codebook=lambda: load_tokenizer(workspace.existing_tokenizer()).codebook_VD,
        clusters=partial(cluster_map, config, workspace, ranks),
        teacher_head=lambda: workspace.model(config, "teacher").head(),
        render=partial(tokenizer_render, workspace),
        perceptual=partial(classifier_features, workspace),
        lpips=lambda net, device: net.load().to(device),
        positions=lambda: trained_positions(config),
        guidance=partial(looked_through, guidance),
    )
    return found.only(config.objective.resources())


def looked_through(network: Student | None) -> VelocityModel:
    """The guidance network of a run that has one."""
    assert isinstance(network, VelocityModel)
    return network


def trained_positions(config: RunConfig) -> tuple[int, ...]:
    """Of a one-pass student, see `Resources.positions`; 1, where it is none."""
    return getattr(config.models.student, "positions", (1,))


def tokenizer_render(workspace: Workspace, device: torch.device) -> Render:
    """The decoder of the run's tokenizer, with frozen weights."""
    tokenizer = load_tokenizer(workspace.existing_tokenizer()).to(device)
    return tokenizer.requires_grad_(False).image_of


def cluster_map(
    config: RunConfig, workspace: Workspace, ranks: ProcessGroup, relaxation: RelaxationConfig
) -> ClusterMap | None:
    """Codebook clusters, kept in the run folder.

    Raises:
        InputError: the codebook does not allow the clusters that were asked for.
    """
    if relaxation.source == "lm_embedding":
        point_VD = workspace.model(config, "teacher").head().weight
    else:
        point_VD = load_tokenizer(workspace.existing_tokenizer()).codebook_VD
    return run_clusters(workspace.clusters, point_VD, relaxation, ranks)
