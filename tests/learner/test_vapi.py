"""VA-pi: one pass answers for a group; the parts of reward and regulariser, alone and together."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from building.objectives import Company
from building.samplers import record_of

from common.config.plugins import kinds
from common.errors import InputError
from common.exchange.trajectory import concatenate
from common.files.tensors import state_digest
from learner.categorical import Categorical
from learner.config import LearnerConfig
from learner.learner import Learner
from learner.objective import TokenChunk
from learner.objectives import gkd, mle, vapi
from learner.process_group import SingleProcess
from learner.teacher_targets import TeacherTargets
from teacher_server.teacher import TeacherConfig, signal_columns

GROUP, ROWS = 3, 12
WHOLE = {"micro_batch": ROWS, "chunk_tokens": 1000, "optimizer": {"max_grad_norm": 1e6}}
PARTS = {"rewards": {"good": 1.0, "fine": 0.5}}


def made(**fields):
    return vapi.Config.model_validate({**PARTS, **fields})


@pytest.fixture
def student(tiny):
    """With dropout in its config."""
    return tiny("llamagen", 1)


@pytest.fixture
def judged(student, data):
    """A lease of draws, as scorers send it."""
    sources = {"parallel": {"noise": 0.5}}
    batch, *_ = record_of(student, data, sources, size=GROUP, count=ROWS)
    return with_rewards(batch)


def with_rewards(batch, **own):
    generator = torch.Generator().manual_seed(7)
    parts = {name: torch.randn(len(batch), generator=generator) for name in ("good", "fine")}
    return replace(batch, sequence=parts | own)


def step(student, objective, batch, teacher=None, ranks=None, **config):
    """(metrics, gradients by name, rows of its passes) of one step that moves nothing."""
    learner = Learner(
        LearnerConfig.model_validate(WHOLE | config),
        objective,
        copy.deepcopy(student),
        seed=0,
        contexts=("parallel",),
        teacher=teacher,
        ranks=ranks,
    )
    held, passes = learner._student, []
    features = held.features
    held.features = lambda c, t, p: passes.append(len(t)) or features(c, t, p)
    grads = {}
    update = learner.update

    def watched(loss):
        found = update(loss)
        grads.update({n: p.grad.clone() for n, p in held.named_parameters()})
        return found

    learner.update = watched
    return learner.step(batch), grads, passes


def lead_rows(batch):
    return torch.arange(0, len(batch), GROUP)


def nll_of_data(student, batch):
    """CE of the data's codes behind what was read, with gradient, without dropout."""
    own, rows = copy.deepcopy(student).eval(), lead_rows(batch)
    plan = batch.plan.rows(rows)
    logprob_KLV = own(batch.label_B[rows], batch.input_BL[rows], plan).log_softmax(-1)
    loss = -logprob_KLV.gather(-1, batch.target_BL[rows][..., None]).mean()
    loss.backward()
    return float(loss.detach()), {n: p.grad for n, p in own.named_parameters()}


@pytest.mark.parametrize("kind", kinds("common.models.backbones"))
def test_one_pass_answers_for_a_group_and_its_ratios_are_one(tiny, data, kind):
    """At first the reward's part is the mean of the advantages, which is 0."""
    student = tiny(kind, 1)
    batch, *_ = record_of(student, data, {"parallel": {}}, size=GROUP, count=ROWS)
    judged = with_rewards(batch)
    metrics, _, passes = step(student, made(), judged)
    assert sum(passes) == ROWS // GROUP
    wanted, _ = nll_of_data(student, judged)
    assert metrics["loss"] == pytest.approx(0.1 * wanted, abs=1e-6)
    assert metrics["regulariser/parallel"] > 0
    assert metrics["clipped/parallel"] == 0
    assert metrics["survival/parallel"] == metrics["weight/parallel"] == 1
    objective = made()
    column = objective.token_weights(judged, {}, SingleProcess()).column
    held, rows = copy.deepcopy(student).eval(), lead_rows(judged)
    with torch.no_grad():
        plan = judged.plan.rows(rows)
        logit_KLV = held(judged.label_B[rows], judged.input_BL[rows], plan)
    column = {name: value[rows].flatten(0, 1) for name, value in column.items()}
    laws = Categorical(logit_KLV.flatten(0, 1)), None
    chunk = TokenChunk("student", judged.token_BL[rows].flatten(), *laws, column)
    torch.testing.assert_close(
        objective._ratio(chunk), torch.ones_like(column["advantages"]), atol=1e-6, rtol=0
    )


def test_the_gradient_is_that_of_every_row_by_itself(student, judged, assert_same_gradients):
    """As the released loop has it, with a pass for each draw, and clipping at old samples."""
    stale = replace(judged, logprob_BL=judged.logprob_BL + torch.linspace(-0.6, 0.6, 6))
    _, found, _ = step(student, made(), stale)
    own = copy.deepcopy(student).eval()
    logprob_BLV = own(stale.label_B, stale.input_BL, stale.plan).log_softmax(-1)
    reward_B = stale.sequence["good"] + 0.5 * stale.sequence["fine"]
    reward_KG = reward_B.view(-1, GROUP)
    spread_K1 = reward_KG.std(1, keepdim=True)
    advantage_B = ((reward_KG - reward_KG.mean(1, keepdim=True)) / (spread_K1 + 1e-8)).flatten()
    token_BL1 = stale.token_BL[..., None]
    ratio_BL = (logprob_BLV.gather(-1, token_BL1)[..., 0] - stale.logprob_BL).exp()
    assert ((ratio_BL - 1).abs() > 0.2).any()
    gain_BL = torch.minimum(
        ratio_BL * advantage_B[:, None], ratio_BL.clamp(0.8, 1.2) * advantage_B[:, None]
    )
    nll_BL = -logprob_BLV.gather(-1, stale.target_BL[..., None])[..., 0]
    (0.1 * nll_BL.mean() - gain_BL.mean()).backward()
    assert_same_gradients(found, {n: p.grad for n, p in own.named_parameters()})


@pytest.mark.parametrize("per_token", [False, True])
def test_no_split_changes_anything(student, judged, per_token, assert_same_gradients):
    """Micro-batches cut groups; two ranks have some groups each."""
    shares = torch.randn(*judged.token_BL.shape, generator=torch.Generator().manual_seed(3))
    batch = replace(judged, signal={"good": shares, "fine": 2 * shares})
    objective = made(per_token=per_token, advantage={"std": "batch"}, beta=0.5)
    assert objective.advantage.clip == 5, "its own default stays"
    wanted = step(student, objective, batch)
    order_B = torch.tensor([7, 0, 11, 3, 8, 1, 10, 5, 2, 9, 4, 6])
    shuffled = concatenate([batch.rows(slice(n, n + 1)) for n in order_B.tolist()])
    for how, rows in (((1, 1), batch), ((5, 7), batch), ((2, 1000), shuffled)):
        split = dict(zip(("micro_batch", "chunk_tokens"), how, strict=True))
        metrics, found, passes = step(student, objective, rows, **split)
        assert sum(passes) == ROWS // GROUP
        assert metrics["loss"] == pytest.approx(wanted[0]["loss"], rel=1e-5)
        assert_same_gradients(found, wanted[1])
    shared, barrier = [None, None], threading.Barrier(2)
    halves = batch.rows(slice(0, 9)), batch.rows(slice(9, 12))

    def of_rank(rank):
        company = Company(rank, shared, barrier)
        return step(student, objective, halves[rank], ranks=company, micro_batch=2)

    with ThreadPoolExecutor(2) as pool:
        for metrics, found, _ in pool.map(of_rank, range(2)):
            assert metrics["loss"] == pytest.approx(wanted[0]["loss"], rel=1e-5)
            assert_same_gradients(found, wanted[1])


def test_each_part_alone_and_none(student, judged, assert_same_gradients):
    _, nll = nll_of_data(student, judged)
    constant = with_rewards(judged, good=torch.full((ROWS,), -0.37), fine=torch.ones(ROWS))
    _, found, _ = step(student, made(beta=1.0), constant)
    assert_same_gradients(found, nll)
    _, found, _ = step(student, made(beta=0.0), constant)
    assert all((grad == 0).all() for grad in found.values()), "exactly nothing"
    one = with_rewards(constant, fine=torch.ones(ROWS))
    one.sequence["good"][:GROUP] = torch.tensor([0.0, 1.0, 2.0])
    _, found, _ = step(student, made(beta=0.0), one)
    assert found["output.weight"].abs().max() > 0
    _, found, _ = step(student, made(beta=1e5), judged)
    assert_same_gradients({n: grad / 1e5 for n, grad in found.items()}, nll)


def test_profiled_steps_compare_the_gradients_of_regulariser_and_reward(student, judged):
    """With those of a step that has one of them alone."""
    constant = with_rewards(judged, good=torch.ones(ROWS), fine=torch.ones(ROWS))
    plain, _, once = step(student, made(beta=0.3), judged)
    found, _, passes = step(student, made(beta=0.3), judged, profile_every=1)
    names = {f"vapi/grad_{name}" for name in ("norm_regulariser", "norm_reward", "ratio")}
    assert found.keys() - plain.keys() == names
    assert passes == 3 * once
    assert found["grad_norm"] == plain["grad_norm"]
    reward, regulariser = (
        step(student, made(beta=beta), rows)[0]["grad_norm"]
        for beta, rows in ((0.0, judged), (0.3, constant))
    )
    assert found["vapi/grad_norm_reward"] == pytest.approx(reward, rel=1e-4)
    assert found["vapi/grad_norm_regulariser"] == pytest.approx(regulariser, rel=1e-4)
    assert found["vapi/grad_ratio"] == pytest.approx(regulariser / reward, rel=1e-3)


def test_a_teacher_in_the_place_of_labels_reads_the_same_noisy_sequence(
    tiny, student, judged, assert_same_gradients
):
    teacher = tiny("llamagen", 2)
    features, read = teacher.features, []
    teacher.features = lambda c, t, p: read.append(len(t)) or features(c, t, p)
    plain = replace(judged, group_B=None, member_B=None)
    guided = TeacherConfig.model_validate({"guidance": 2.0})
    each, columns = (
        signal_columns(guided, teacher, teacher.head, of, entropy=False) for of in (plain, judged)
    )
    assert read == [2 * ROWS, 2 * ROWS // GROUP], "what a group reads alike is read once"
    torch.testing.assert_close(columns["hidden"], each["hidden"])
    scored = judged.scored(columns, {"head": state_digest(teacher.head)})
    targets = TeacherTargets(TeacherConfig().signal, teacher.head, state_digest(teacher.head))
    constant = replace(scored, sequence={"good": torch.ones(ROWS), "fine": torch.ones(ROWS)})
    objective = made(regulariser="teacher", beta=1.0)
    _, found, _ = step(student, objective, constant, targets)
    quiet = copy.deepcopy(student)
    for module in quiet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    divergence = {"divergence": {"name": "fkl"}}
    _, wanted, _ = step(quiet, gkd.Config.model_validate(divergence), constant, targets)
    assert_same_gradients(found, wanted)
    assert objective.asks_teacher()
    assert not made().asks_teacher()
    step(student, made(), judged, targets)  # never looks at the columns, which are not there


def test_groups_that_failed_are_left_out_and_foreign_rows_refused(
    student, judged, assert_same_gradients
):
    failed = torch.zeros(ROWS)
    failed[1] = 1
    lost = with_rewards(judged, good_failed=failed)
    metrics, found, _ = step(student, made(), lost)
    assert metrics["reward/groups_left_out"] == 1
    _, kept, _ = step(student, made(), with_rewards(judged).rows(slice(GROUP, ROWS)))
    assert_same_gradients(found, kept)
    weights = made().token_weights(lost, {}, SingleProcess())
    assert (weights.weight_BL[:GROUP] == 0).all()
    assert (weights.support_BL.sum(1) > 0).tolist() == [False] * GROUP + [True] * (ROWS - GROUP)
    other = replace(judged, input_token_BL=judged.token_BL)
    with pytest.raises(InputError, match="rows of one were drawn from several"):
        step(student, made(), other)
    with pytest.raises(InputError, match="records have no groups"):
        step(student, made(), replace(judged, group_B=None, member_B=None))


def test_mle_has_nothing_to_learn_from_draws(student, judged):
    """So that the cross-entropy is the objective's own, not that of another kind."""
    metrics, found, _ = step(student, mle.Config(), judged)
    assert metrics["loss"] == 0
    assert all((grad == 0).all() for grad in found.values())
