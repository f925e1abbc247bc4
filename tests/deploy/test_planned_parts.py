"""The dry run counts what a config adds: scorers of the chain, and an objective's resources."""

from dataclasses import replace

import pytest
import torch
from building.objectives import OF_BACKBONES, WITH
from torch import nn

from common.exchange.trajectory import from_arrow, to_arrow
from deploy.planning.artifacts import sequence_spec
from deploy.planning.blank_tensors import META, peak_bytes
from deploy.planning.memory import blank_batch, chain_bytes, resources_like
from deploy.planning.plan import plan_run
from deploy.planning.resources import PROCESS_MB, Sizing
from deploy.planning.sampling_memory import decoding_bytes
from deploy.planning.skeletons import (
    classifier_like,
    parameters,
    skeleton,
    state_bytes,
    tokenizer_like,
)
from deploy.planning.throughput import image_flops
from learner.objective import PlainObjective
from teacher_server.scorer import ScorerFiles
from teacher_server.teacher import Teacher

CHAIN = ("scorers.teacher.kind=teacher", "scorers.opinion.kind=token_logprob")


def test_a_scorer_holds_and_takes_what_it_does_with_content(run_in):
    config, workspace = run_in(*CHAIN, "rollout.batch_size=8", "scorers.opinion.chunk_tokens=64")
    file = workspace.model(config, "teacher")
    student = workspace.model(config, "student_before").load()
    batch = blank_batch(student, ("student",) * 8, config.rollout.sampling)
    facts = {"lease": "0", "generation": "1", "worker": "w", "rollout_seconds": "0"}
    teacher = Teacher(config.teacher, file, coalesce=False)
    record = teacher.score(to_arrow(replace(batch, facts=facts)))
    opinion = config.scorers["opinion"].build(ScorerFiles(config.teacher, file, False))
    assert "token_logprob" in from_arrow(opinion.score(record)).signal
    with_content = peak_bytes(lambda: opinion.score(record))
    head = skeleton(config.models.teacher, student.spec).head
    held, taken = chain_bytes(config, "opinion", student.spec, head)
    assert held == parameters(head) * 4
    assert taken == pytest.approx(with_content, rel=0.05)


def test_every_scorer_of_the_chain_is_planned(run_in):
    config, workspace = run_in(*CHAIN, "scorers.opinion.replicas=2", "rollout.workers=3")
    needs = {need.role: need for need in plan_run(config, workspace, timed=True).needs}
    opinion = needs["scorer opinion"]
    assert (opinion.bundles.count, opinion.cpus, opinion.bundles.section) == (
        2,
        1,
        "scorers.opinion",
    )
    assert 350 < opinion.host_mb < needs["teacher server"].host_mb


def test_networks_by_which_rewards_judge_are_counted(run_in):
    """None of their files need be there, nor the images that rows are compared with."""
    kinds = ("decoded_mse", "perceptual", "classifier")
    wide = ("tokenizer.kind=conv_vq", "tokenizer.width=32", "tokenizer.code_width=4")
    config, _ = run_in(*wide, *(f"scorers.{kind}.kind={kind}" for kind in kinds))
    spec = replace(config.tokenizer.describe(config.images.size), num_classes=10)
    head = skeleton(config.models.teacher, spec).head
    drawing = state_bytes(tokenizer_like(config, META))
    looking = 4 * parameters(classifier_like(config, spec, META))
    image = 4 * config.images.channels * config.images.size**2 * config.rollout.batch_size
    wanted = {"decoded_mse": drawing, "perceptual": drawing + looking}
    for kind in kinds:
        held, taken = chain_bytes(config, kind, spec, head)
        assert held == pytest.approx(wanted.get(kind, drawing + looking), rel=0.02)
        assert taken > 2 * image, "what was drawn, and what that came from"
    sizing = Sizing(config, spec)
    assert {need.role for need in sizing.needs(lambda device, gpus: False)} >= {"scorer perceptual"}
    assert not sizing.uncounted


def test_a_draft_takes_its_own_cache_beside_the_teachers(run_in):
    config, _ = run_in("contexts.sources.teacher={draft_tokens=3}", "rollout.batch_size=8")
    spec = replace(config.tokenizer.describe(config.images.size), num_classes=10)
    teacher, student = (skeleton(m, spec) for m in (config.models.teacher, config.models.student))
    both = decoding_bytes(config, teacher.eval(), "teacher", student)
    sizes = config.models.teacher, config.models.student
    row = sum(2 * 4 * model.depth * model.width for model in sizes)  # keys and values in float32
    assert both > row * 8 * (spec.length + 4)


class Rendered(PlainObjective):
    """Draws what it wants and looks at it."""

    def resources(self):
        return ("render", "perceptual", "codebook")

    def token_loss(self, chunk):
        return chunk.student_NV.sum(-1)


def test_networks_that_an_objective_asks_for_are_counted(run_in):
    config, _ = run_in("tokenizer.kind=conv_vq", "tokenizer.width=32", "tokenizer.code_width=4")
    config = config.model_copy(update={"objective": Rendered()})
    spec = replace(config.tokenizer.describe(config.images.size), num_classes=10)
    found = resources_like(config, spec, torch.nn.Linear(8, spec.vocab_size, device=META))
    tokenizer = tokenizer_like(config, META)
    width, made = tokenizer.codebook_VD.shape[1], []

    def look():
        vector_BLD = torch.zeros(4, spec.length, width, device=META, requires_grad=True)
        made.append(found.render(vector_BLD))

    assert peak_bytes(look) > parameters(tokenizer) * 4 + 4 * spec.length * width * 4
    classifier = classifier_like(config, spec, META)
    assert peak_bytes(lambda: found.perceptual(made[0])) > parameters(classifier) * 4
    peak_bytes(lambda: made.append(found.codebook_VD))
    side = config.images.size
    assert made[0].shape == (4, config.images.channels, side, side)
    assert made[1].shape == tokenizer.codebook_VD.shape


def unguided(config):
    teacher = config.teacher.model_copy(update={"guidance": None})
    return config.model_copy(update={"teacher": teacher})


def test_flops_are_those_of_the_roles_own_code(run_in):
    """Every weight of an MLP or a projection is 2 flops per token forward and 4 backward, so a run
    without guidance, sampling or scorers takes 2 of the teacher's and 6 of the student's."""
    alone = ("contexts.sources.student.ratio=0", "objective.kind=kd", "rollout.batch_size=4")
    config, workspace = run_in(*alone)
    spec = sequence_spec(config, workspace)
    sizing = Sizing(unguided(config), spec)

    def matrices(model):
        return sum(part.weight.numel() for part in model.modules() if isinstance(part, nn.Linear))

    teacher, student = (skeleton(m, spec) for m in (config.models.teacher, config.models.student))
    decoding = 2 * parameters(student)  # as one forward pass
    wanted = 2 * matrices(teacher) + 6 * matrices(student) + decoding
    assert image_flops(sizing) == pytest.approx(wanted * spec.length, rel=0.1)
    chained, _ = run_in(*alone, *CHAIN, name="chained")
    more = image_flops(Sizing(unguided(chained), spec)) - image_flops(sizing)
    assert more == 2 * teacher.head.weight.numel() * spec.length


def test_entropies_that_nobody_reads_are_not_planned(run_in):
    """A pass through the teacher's head is 2 flops per weight and token, an entropy 4 bytes."""
    names = ("mode", "weight")
    config, workspace = run_in("contexts.sources.student.ratio=0", "rollout.batch_size=4")
    without, _ = run_in(
        "contexts.sources.student.ratio=0",
        "rollout.batch_size=4",
        *(f"objective.gate.{name}=none" for name in names),
        name="without",
    )
    spec = sequence_spec(config, workspace)
    read, unread = Sizing(unguided(config), spec), Sizing(unguided(without), spec)
    head = skeleton(config.models.teacher, spec).head
    assert image_flops(read) - image_flops(unread) == 2 * head.weight.numel() * spec.length
    assert read.row_bytes - unread.row_bytes == 4 * spec.length


@pytest.mark.parametrize("kind", OF_BACKBONES)
def test_every_objective_can_be_sized(run_in, kind):
    how = (f"objective.kind={kind}", "contexts.sources.student.ratio=1", *WITH.get(kind, ()))
    config, workspace = run_in(*how)
    plan = plan_run(config, workspace, timed=True)
    learner = next(need for need in plan.needs if need.role == "learner")
    assert learner.host_mb > PROCESS_MB
