"""What the learner must guarantee: exactness of chunks, signals, denominators, gate and prefix."""

import copy

import pytest
import torch
from building.objectives import OF_BACKBONES, built, judged

from common.config.plugins import load_plugin
from common.errors import InputError
from common.exchange.entropy import entropies
from common.exchange.packed_weights import unpack
from common.exchange.signals import full, guided_hidden
from common.files.tensors import state_digest
from common.models.guidance import Guidance
from learner.chunked import chunked_loss
from learner.config import LearnerConfig
from learner.divergence import Divergence
from learner.gate import GateConfig
from learner.learner import Learner, TeacherTargets
from learner.objectives import gkd, kd, varkd
from learner.optimizer import OptimizerConfig
from learner.relaxation import ClusterMap, RelaxationConfig
from teacher_server.teacher import guided_features

V = 24
CONTEXTS = ("data", "student")


@torch.no_grad()
def score(batch, teacher, signal=None, scale=None):
    """What the teacher server does, without the server."""
    signal = signal or guided_hidden.Config()
    guidance = Guidance(scale=scale) if scale else None
    hidden_BLC = guided_features(teacher, batch, guidance)
    columns = signal.encode(hidden_BLC, teacher.head)
    columns["entropy"] = entropies(hidden_BLC, teacher.head)
    return batch.scored(columns, {"head": state_digest(teacher.head)})


def learner_of(student, teacher, objective, *, clusters=None, signal=None, **settings):
    head = copy.deepcopy(teacher.head)
    view = TeacherTargets(signal or guided_hidden.Config(), head, state_digest(head))
    unclipped = {"max_grad_norm": 1e6}
    settings = {"micro_batch": 5, "chunk_tokens": 7, "optimizer": unclipped} | settings
    config = LearnerConfig.model_validate(settings)
    return Learner(
        config,
        built(objective, clusters),
        copy.deepcopy(student),
        seed=0,
        contexts=CONTEXTS,
        teacher=view,
    )


@pytest.fixture
def pair(tiny):
    student, teacher = tiny("llamagen", 0), tiny("llamagen", 1)
    for module in (*student.modules(), *teacher.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return student, teacher


@pytest.fixture
def clusters():
    return ClusterMap(torch.arange(V) // 4, V // 4)


def gradients(learner, batch):
    """Metrics and gradients of one step, before the optimizer moved anything else."""
    metrics = learner.step(batch)
    return metrics, {n: p.grad.clone() for n, p in learner._student.named_parameters()}


@pytest.mark.parametrize("kind", OF_BACKBONES)
def test_chunks_and_micro_batches_change_nothing(
    pair, sampled, clusters, kind, assert_same_gradients
):
    objective = load_plugin("learner.objectives", kind).Config()
    batch = judged(score(sampled(pair[0]), pair[1]))
    found = [
        gradients(
            learner_of(*pair, objective, clusters=clusters, micro_batch=m, chunk_tokens=c), batch
        )
        for m, c in ((5, 1000), (2, 3), (1, 1))
    ]
    for metrics, grads in found[1:]:
        assert metrics["loss"] == pytest.approx(found[0][0]["loss"], rel=1e-5)
        assert_same_gradients(grads, found[0][1])


def test_chunked_loss_equals_plain_autograd(pair, sampled):
    student = pair[0]
    batch = sampled(student)
    student = student.double()  # in which a sum over codes and tokens has no rounding to speak of
    hidden_NC = student.features(batch.label_B, batch.token_BL, batch.plan).flatten(0, 1)
    hidden_NC = hidden_NC.detach().requires_grad_()
    weight_NV = torch.randn(len(hidden_NC), V).double()

    def loss(logit_nV, tokens):
        return (weight_NV[tokens] * logit_nV.log_softmax(-1)).sum()

    plain = loss(student.head(hidden_NC), slice(None))
    wanted = torch.autograd.grad(plain, (hidden_NC, student.head.weight))
    chunked = chunked_loss(hidden_NC, student.head, loss, 4)
    found = torch.autograd.grad(3 * chunked, (hidden_NC, student.head.weight))
    # The chunks' sums are added in float32.
    terms_NV = weight_NV * student.head(hidden_NC).log_softmax(-1)
    assert float((chunked - plain).detach().abs()) < 1e-6 * float(terms_NV.detach().abs().sum())
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, 3 * other, atol=1e-9, rtol=1e-9)


def test_gradient_on_prefix_positions_is_exactly_zero(pair, sampled, clusters):
    student, teacher = pair
    batch = score(sampled(student), teacher).rows(slice(2, 5))
    learner = learner_of(student, teacher, varkd.Config(gate=GateConfig(tau=0)), clusters=clusters)
    seen = []
    features = learner._student.features

    def watched(*arguments):
        hidden_BLC = features(*arguments)
        hidden_BLC.register_hook(seen.append)
        return hidden_BLC

    learner._student.features = watched
    learner.step(batch)
    (grad_BLC,) = seen
    assert (grad_BLC[~batch.suffix_BL] == 0).all()
    assert (grad_BLC[batch.suffix_BL].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("kind", ["kd", "gkd", "varkd"])
def test_student_equal_to_teacher_gives_zero_loss_and_gradient(pair, sampled, clusters, kind):
    _, teacher = pair
    objective = load_plugin("learner.objectives", kind).Config()
    batch = score(sampled(teacher), teacher)
    metrics, grads = gradients(learner_of(teacher, teacher, objective, clusters=clusters), batch)
    assert metrics["loss"] == pytest.approx(0, abs=1e-6)
    assert max(float(grad.abs().max()) for grad in grads.values()) < 1e-5


@pytest.mark.parametrize("divergence", ["rkl", "fkl", "jsd"])
def test_varkd_without_gate_weight_and_relaxation_is_gkd_to_the_bit(pair, sampled, divergence):
    chosen = Divergence(name=divergence)
    bare = varkd.Config(
        student=chosen,
        data=chosen,
        gate=GateConfig(tau=0, weight="none"),
        relaxation=RelaxationConfig(factor=1),
    )
    batch = score(sampled(pair[0]), pair[1])
    plain = gradients(learner_of(*pair, gkd.Config(divergence=chosen)), batch)
    # One code per cluster must not change a bit either, so the map is there.
    identity = ClusterMap(torch.arange(V), V)
    for clusters in (None, identity):
        found = gradients(learner_of(*pair, bare, clusters=clusters), batch)
        assert found[0]["loss"] == plain[0]["loss"]
        for name, grad in found[1].items():
            assert torch.equal(grad, plain[1][name]), name


def test_data_steps_equal_kd(pair, sampled, clusters):
    batch = score(sampled(pair[0]), pair[1]).rows(slice(0, 2))
    ours = gradients(learner_of(*pair, varkd.Config(), clusters=clusters), batch)
    plain = gradients(learner_of(*pair, kd.Config()), batch)
    assert ours[0]["loss"] == plain[0]["loss"] > 0
    for name, grad in ours[1].items():
        assert torch.equal(grad, plain[1][name]), name


@pytest.mark.parametrize("scale", [None, 2.5])
@pytest.mark.parametrize("kind", ["kd", "varkd"])
def test_both_signals_give_the_same_loss(pair, sampled, clusters, kind, scale):
    objective = load_plugin("learner.objectives", kind).Config()
    losses = []
    for signal in (guided_hidden.Config(), full.Config()):
        batch = score(sampled(pair[0]), pair[1], signal, scale)
        metrics = learner_of(*pair, objective, clusters=clusters, signal=signal).step(batch)
        losses.append(metrics["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] > 0.01


def test_half_precision_signal_is_close_and_refuses_overflow(pair, sampled, clusters):
    half = guided_hidden.Config(dtype="float16")
    exact = learner_of(*pair, kd.Config()).step(score(sampled(pair[0]), pair[1]))
    batch = score(sampled(pair[0]), pair[1], half)
    rounded = learner_of(*pair, kd.Config(), signal=half).step(batch)
    assert rounded["loss"] == pytest.approx(exact["loss"], rel=5e-3)
    with pytest.raises(InputError, match=r"teacher\.signal\.dtype=float32"):
        half.encode(torch.full((1, 1, 4), 1e6), torch.nn.Linear(4, V))
    for signal in (half, guided_hidden.Config()):
        with pytest.raises(InputError, match=r"is not finite; check teacher\.weights"):
            signal.encode(torch.full((1, 1, 4), torch.nan), torch.nn.Linear(4, V))


def test_denominators_are_global_over_ranks(pair, sampled, clusters, assert_same_gradients):
    """Two ranks with a share each add up to one rank with everything."""
    batch = score(sampled(pair[0]), pair[1])
    objective = varkd.Config()
    whole = gradients(learner_of(*pair, objective, clusters=clusters), batch)
    shares = [batch.rows(slice(0, 3)), batch.rows(slice(3, 5))]
    totals = []

    class Recorder:
        rank, world = 0, 1

        def __init__(self, answer=None):
            self.answer = answer

        def sum_(self, tensor):
            if tensor.ndim == 2:  # the totals by context
                totals.append(tensor)
                return self.answer if self.answer is not None else tensor
            return tensor

        def barrier(self): ...

    for share in shares:
        learner = learner_of(*pair, objective, clusters=clusters)
        learner._ranks = Recorder()
        learner.step(share)
    answer = totals[0] + totals[1]
    grads = []
    for share in shares:
        learner = learner_of(*pair, objective, clusters=clusters)
        learner._ranks = Recorder(answer)
        grads.append(gradients(learner, share)[1])
    assert_same_gradients({name: grads[0][name] + grads[1][name] for name in grads[0]}, whole[1])


def test_a_record_of_another_teacher_is_refused(pair, sampled, clusters):
    batch = score(sampled(pair[0]), pair[0])
    with pytest.raises(ValueError, match="must load the same teacher file"):
        learner_of(*pair, kd.Config()).step(batch)


def test_snapshot_and_restore_continue_exactly(pair, sampled, clusters):
    batch = score(sampled(pair[0]), pair[1])
    one = learner_of(*pair, varkd.Config(), clusters=clusters)
    one.step(batch)
    kept = copy.deepcopy(one.snapshot())
    losses = [one.step(batch)["loss"] for _ in range(2)]
    two = learner_of(*pair, varkd.Config(), clusters=clusters)
    two.restore(kept, step=1)
    assert [two.step(batch)["loss"] for _ in range(2)] == losses
    for name, value in one.snapshot()["ema"].items():
        assert torch.equal(value, two.snapshot()["ema"][name])


def test_learning_rate_warms_up_and_follows_its_schedule():
    config = OptimizerConfig(learning_rate=1.0, warmup=4, schedule="cosine")
    rates = [config.rate(step, 14) for step in range(14)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[9] == pytest.approx(0.5)
    assert rates[13] < 0.05


def test_a_float32_student_on_a_cpu_is_few_parts_to_send(pair, sampled):
    """Of which one has all its wide tensors, also after a step."""
    learner = learner_of(*pair, kd.Config())
    for _ in range(2):
        found = learner.published("float32")
        state = unpack(found.payload)
        for name, tensor in dict(learner.states())["student"].items():
            assert torch.equal(state[name], tensor)
        sizes = [len(part) for part in found.payload[1:]]
        whole = sum(t.nbytes for t in pair[0].parameters() if t.nbytes % 64 == 0)
        assert max(sizes) == whole
        learner.step(score(sampled(pair[0]), pair[1]))
