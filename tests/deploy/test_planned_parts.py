"""The dry run counts what a config adds: scorers of the chain, and an objective's resources."""

from dataclasses import replace

import pytest
import torch

from common.exchange.trajectory import from_arrow, to_arrow
from deploy.planning.blank_tensors import META, peak_bytes
from deploy.planning.memory import blank_batch, chain_bytes, resources_like
from deploy.planning.plan import plan_run
from deploy.planning.skeletons import parameters, skeleton, tokenizer_like
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
        found.perceptual(made[0]).sum().backward()
        made.append(found.codebook_VD)

    assert peak_bytes(look) > parameters(tokenizer) * 4 + 4 * spec.length * width * 4
    side = config.images.size
    assert made[0].shape == (4, config.images.channels, side, side)
    assert made[1].shape == tokenizer.codebook_VD.shape
