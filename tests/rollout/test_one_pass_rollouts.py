"""Rollouts of a one-pass student, and the teacher's score of its own sequences, through worker,
record, buffer and ledger."""

from dataclasses import replace

import pytest
import torch

from common.data.tokens import load_tokens
from common.errors import Diverged
from common.exchange.buffer import Buffer
from common.exchange.ledger import Ledger
from common.exchange.packed_weights import pack
from common.exchange.schedule import Phase, Schedule
from common.exchange.trajectory import from_arrow, to_arrow
from common.exchange.weights import Weights, WeightStore
from common.models.few_steps import nearest
from common.models.generator import gaussian
from common.models.generators import linear
from common.models.guidance import Guidance
from common.randomness import Draws
from common.tokenization.tokenizer import load_tokenizer
from learner.intake import Taken
from rollout.context import ContextsConfig
from rollout.worker import RolloutWorker
from teacher_server.scorer import Bypass, Delivery, ScorerFiles, ScorerLink
from teacher_server.scorers import teacher as teacher_scorer
from teacher_server.teacher import guided_features

STEPS = Schedule(6, 8, 4, max_staleness=0, publish_every=1, phases=(Phase(0, 3),))
CONTEXTS = ContextsConfig.model_validate(
    {"sources": {"student": {"min_prefix": 0.0, "max_prefix": 0.0}}}
)


@pytest.fixture
def roles(run_in):
    """Real files of digits; a generator in the student's place, version 0 published."""
    config, workspace = run_in("rollout.class_dropout=0.0", "rollout.batch_size=4")
    data, file = load_tokens(workspace.train_tokens), workspace.model(config, "teacher")
    torch.manual_seed(3)
    student = linear.Config().build(data.spec, load_tokenizer(workspace.tokenizer).codebook_VD)
    ledger = Ledger(STEPS)
    buffer = Buffer(STEPS, max_bytes=2**30, ledger=ledger)
    weights = WeightStore(STEPS.versions_kept)
    weights.publish(Weights.of(0, pack(student, torch.float32)))
    teacher = config.teacher.model_copy(update={"guidance": Guidance(scale=2.0)})
    files = ScorerFiles(teacher, file, ordered=True)
    scorer = ScorerLink(teacher_scorer.Config(), files, onward=Delivery(buffer))
    worker = RolloutWorker(
        config.rollout,
        CONTEXTS,
        linear.Config(),
        name="w",
        schedule=STEPS,
        draws=Draws(0, len(data)),
        data=data,
        scorers=Bypass(STEPS, scorer, Delivery(buffer)),
        weights=weights,
        ledger=ledger,
        tokenizer=workspace.tokenizer,
    )
    buffer.clear(ledger.restore({"step": 0, "frontier": 0, "beyond": []}))
    return worker, ledger, buffer, weights, student, file.load()


def taken(buffer, step):
    share = buffer.take(step, shard=0, shards=1, timeout=0.0)
    return None if share is None else Taken.of(share)


@torch.no_grad()
def test_a_row_is_a_function_of_its_label_its_seed_and_the_version(roles):
    worker, ledger, buffer, weights, student, teacher = roles
    for step in range(6):
        while (found := taken(buffer, step)) is None:
            assert worker.produce()
        batch = found.batch
        version = step // 3 * 3
        assert batch.version_B.tolist() == [version] * 8
        assert (set(batch.policy), set(batch.law)) == ({"student"}, {"exact"})
        seeds = [worker._draws.noise_seed(index) for index in batch.id_B.tolist()]
        assert batch.seed_B.tolist() == seeds
        made = student(batch.label_B, gaussian(seeds, student.spec.length, student.code_width))
        assert torch.equal(batch.vector_BLD, made.vector_BLD)
        assert torch.equal(batch.token_BL, made.token_BL)
        assert torch.equal(batch.token_BL, nearest(batch.vector_BLD, student.codebook_VD))
        assert ("hidden" in batch.signal) == (step % 3 == 2)
        if step % 3 == 2:  # the step that changes the student, and the only one that asks
            wanted = guided_features(teacher, batch, Guidance(scale=2.0))
            torch.testing.assert_close(batch.signal["hidden"], wanted, atol=1e-5, rtol=1e-5)
            student.shift_LD.add_(1.0)
            weights.publish(Weights.of(step + 1, pack(student, torch.float32)))
        ledger.commit(step + 1, found.leases)
    assert buffer.gauges()["buffer/dropped"] == 0


def test_nothing_is_sampled_before_the_student_changed_and_all_of_its_steps_may_be(roles):
    worker, ledger, *_ = roles
    assert [worker.produce() for _ in range(7)] == [True] * 6 + [False]
    ledger.commit(1, [0, 1])
    assert not worker.produce()
    ledger.commit(3, [2, 3, 4, 5])
    assert worker.produce()


def test_rows_of_an_older_student_are_dropped_and_sampled_again(roles):
    """Such as a worker makes that has not heard of the newest."""
    worker, ledger, buffer, weights, student, _ = roles
    for _ in range(6):
        assert worker.produce()
    for step in range(3):
        ledger.commit(step + 1, taken(buffer, step).leases)
    assert worker.produce()
    assert worker.produce()  # both of step 3, still by version 0
    weights.publish(Weights.of(3, pack(student, torch.float32)))
    assert taken(buffer, 3) is None
    assert buffer.gauges()["buffer/dropped"] == 8
    while (found := taken(buffer, 3)) is None:
        assert worker.produce()
    assert found.leases == [6, 7]
    assert found.batch.version_B.tolist() == [3] * 8


def test_vectors_that_are_not_finite_say_whose_they_are(roles):
    worker, _, _, weights, student, _ = roles
    with torch.no_grad():
        student.shift_LD.fill_(torch.inf)
    weights.publish(Weights.of(1, pack(student, torch.float32)))
    with pytest.raises(Diverged, match="step 1: the student's code vectors are not finite"):
        worker.produce()


@torch.no_grad()
@pytest.mark.parametrize("guidance", [None, 1.5])
def test_var_reads_vectors_through_its_canvas(tiny, sampled, guidance):
    """The vectors of codes give what the codes give; moving one of a scale moves what later scales
    are told, and nothing else."""
    model = tiny("var", 1)
    batch = sampled(tiny("var", 0))
    code_BLD = model.quantizer.code_VD[batch.token_BL]
    rule = guidance and Guidance(scale=guidance)
    exact = replace(batch, vector_BLD=code_BLD)
    by_codes = guided_features(model, batch, rule)
    assert torch.equal(guided_features(model, exact, rule, vectors=True), by_codes)
    moved_BLD = code_BLD.clone()
    moved_BLD[:, 2] += 0.3  # the second of scales of 1, 4 and 9 slots
    moved = from_arrow(to_arrow(replace(batch, vector_BLD=moved_BLD)))
    found = guided_features(model, moved, rule, vectors=True)
    assert torch.equal(found[:, :5], by_codes[:, :5])
    assert ((found[:, 5:] - by_codes[:, 5:]).abs().amax(-1) > 0).all()
    assert torch.equal(guided_features(model, moved, rule), by_codes)
