"""Which slots count, and how much: every mode, calibration, the controls, and what is refused."""

import math

import pytest
import torch

from common.config.schema import validate
from common.errors import InputError
from common.exchange.trajectory import TrajectoryBatch
from common.models.plan import DecodePlan
from common.spec import SequenceSpec
from learner.gate import GateConfig, confidence, scores, token_weights
from learner.process_group import SingleProcess, gather

V = 24


@pytest.fixture
def batch_of():
    """A scored batch of rollouts with the given confidences and prefix lengths."""

    def build(alpha, prefix=None, **signal):
        alpha_BL = torch.as_tensor(alpha, dtype=torch.float32)
        rows, length = alpha_BL.shape
        index_B = torch.arange(rows)
        prefix_B = torch.zeros_like(index_B) if prefix is None else torch.tensor(prefix)
        order_BL = torch.arange(length).expand(rows, -1)
        return TrajectoryBatch(
            spec=SequenceSpec(V, length, (1, length), 3),
            id_B=index_B,
            version_B=index_B,
            label_B=index_B,
            context=("student",) * rows,
            policy=("student",) * rows,
            law=("exact",) * rows,
            prefix_B=prefix_B,
            plan=DecodePlan(order_BL, (1,) * length),
            token_BL=torch.zeros(rows, length, dtype=torch.long),
            logprob_BL=torch.full((rows, length), math.log(0.5)),
            signal={"entropy": (1 - alpha_BL) * math.log(V), **signal},
        )

    return build


@pytest.fixture
def many(batch_of):
    """Two hundred rollouts whose confidences differ by sequence and by slot."""
    generator = torch.Generator().manual_seed(0)
    alpha = 0.3 + 0.05 * torch.randn(200, 20, generator=generator)
    prefix = torch.randint(5, 15, (200,), generator=generator).tolist()
    return batch_of(alpha.clamp(0.01, 0.99), prefix)


class Half(SingleProcess):
    """One of two ranks whose sums are known beforehand: all calls of both, added up."""

    world = 2

    def __init__(self, rank, log, answers=None):
        self.rank, self.log, self.answers = rank, log, answers

    def sum_(self, tensor):
        self.log.append(tensor.clone())
        return tensor if self.answers is None else self.answers[len(self.log) - 1]


def gated(batch, memory=None, ranks=None, **fields):
    config = GateConfig(**fields)
    memory = {} if memory is None else memory
    return token_weights(config, batch, batch.suffix_BL, memory, ranks or SingleProcess())


def kept(batch, **fields):
    return gated(batch, **fields).open_BL.int().tolist()


def test_first_hit_closes_strictly_after_the_first_low_confidence_of_the_suffix(batch_of):
    batch = batch_of([[0.05, 0.5, 0.4, 0.05, 0.6, 0.7]], prefix=[1])
    assert kept(batch) == [[0, 1, 1, 1, 0, 0]]
    assert kept(batch, keep_hit=False) == [[0, 1, 1, 0, 0, 0]]
    assert kept(batch, tau=0) == kept(batch, mode="none") == [[0, 1, 1, 1, 1, 1]]


def test_scope_all_also_looks_at_the_prefix(batch_of):
    batch = batch_of([[0.05, 0.5, 0.4, 0.3], [0.5, 0.5, 0.4, 0.3]], prefix=[2, 2])
    assert kept(batch, scope="all") == [[0, 0, 0, 0], [0, 0, 1, 1]]
    assert kept(batch) == [[0, 0, 1, 1], [0, 0, 1, 1]]


def test_per_token_closes_no_more_than_what_is_low(batch_of):
    batch = batch_of([[0.05, 0.5, 0.05, 0.3, 0.05, 0.7]], prefix=[1])
    assert kept(batch, mode="per_token") == [[0, 1, 0, 1, 0, 1]]


def test_running_mean_forgives_a_single_low_slot(batch_of):
    alpha = [[0.0, 0.4, 0.05, 0.4, 0.05, 0.05, 0.05, 0.9]]
    batch = batch_of(alpha, prefix=[1])
    assert kept(batch, mode="running_mean", window=2) == [[0, 1, 1, 1, 1, 1, 0, 0]]
    assert kept(batch, mode="running_mean", window=1) == kept(batch)
    config = GateConfig(mode="running_mean", window=3, keep_hit=False)
    found = scores(config, torch.tensor(alpha), batch, batch.suffix_BL)[0, 1:]
    means = [sum(alpha[0][max(1, t - 2) : t + 1]) / min(3, t) for t in range(1, 8)]
    lowest = [min(means[: t + 1]) for t in range(7)]
    torch.testing.assert_close(found, torch.tensor(lowest))


def test_speculative_closes_where_the_running_acceptance_has_fallen(batch_of):
    """docs/method.md, "Gate": a_t = min(1, p(y_t) / q(y_t)); here q is 1/2 everywhere."""
    accepted = [1.0, 0.5, 1.0, 0.5, 0.5, 1.0]
    p = torch.tensor([[0.5 * a for a in accepted]])
    p[0, 0] = 0.9  # more likely under the teacher counts as accepted, not as more than that
    batch = batch_of([[0.5] * 6], token_logprob=p.log())
    assert kept(batch, mode="speculative", tau=0.3) == [[1, 1, 1, 1, 0, 0]]
    assert kept(batch, mode="speculative", tau=0.3, keep_hit=False) == [[1, 1, 1, 0, 0, 0]]
    assert GateConfig(mode="speculative").reads() == {"token_logprob"}


def test_weight_is_the_confidence_to_a_power(batch_of):
    probability = torch.tensor([[0.2, 0.3, 0.4]])
    batch = batch_of([[0.4, 0.05, 0.5]], max_prob=probability)
    found = gated(batch, power=2.0).weight_BL
    torch.testing.assert_close(found, torch.tensor([[0.16, 0.0025, 0.0]]))
    found = gated(batch, weight="maxprob", mode="none").weight_BL
    torch.testing.assert_close(found, probability)
    assert gated(batch, weight="none").weight_BL.tolist() == [[1, 1, 0]]
    assert GateConfig(weight="maxprob").reads() == {"max_prob"}


def test_confidence_over_clusters_replaces_that_over_codes(batch_of):
    batch = batch_of([[0.5, 0.5, 0.5]], cluster_confidence=torch.tensor([[0.4, 0.05, 0.3]]))
    found = gated(batch, entropy_space="C")
    torch.testing.assert_close(found.weight_BL, torch.tensor([[0.4, 0.05, 0.0]]))
    assert GateConfig(entropy_space="C").reads() == {"cluster_confidence"}
    assert GateConfig().reads() == set()


def test_a_uniform_teacher_has_no_confidence_and_no_negative_weight(batch_of):
    uniform = confidence(torch.tensor([[math.log(V)]]), V)
    torch.testing.assert_close(uniform, torch.zeros(1, 1), atol=1e-6, rtol=0)
    batch = batch_of([[-1e-7, 0.5]])
    assert gated(batch, tau=0).weight_BL.min() == 0


@pytest.mark.parametrize("mode", ["first_hit", "running_mean", "per_token"])
def test_calibration_reaches_its_target_and_then_stays(many, mode):
    memory = {}
    fields = {"mode": mode, "survival_target": 0.6, "calibrate_on": 200}
    found = gated(many, memory, **fields)
    slots = many.suffix_BL.sum()
    assert float(found.open_BL.sum() / slots) == pytest.approx(0.6, abs=0.01)
    assert memory["gate/rollouts"] == 200
    tau = memory["gate/tau"]
    many.signal["entropy"] += 0.5
    again = gated(many, memory, **fields)
    assert memory["gate/tau"] == tau
    assert again.open_BL.sum() < found.open_BL.sum()


def test_calibration_averages_over_the_batches_it_is_given(many):
    memory, taus = {}, []
    for rows in (slice(0, 50), slice(50, 200)):
        alone = {}
        gated(many.rows(rows), alone, survival_target=0.5)
        taus.append(alone["gate/tau"])
        gated(many.rows(rows), memory, survival_target=0.5, calibrate_on=300)
    assert memory["gate/tau"] == pytest.approx(0.25 * taus[0] + 0.75 * taus[1])


@pytest.mark.parametrize("control", ["random", "truncate"])
def test_controls_close_as_much_as_the_gate_but_not_the_same(many, control):
    real, other = gated(many, tau=0.22), gated(many, tau=0.22, control=control)
    left, slots = int(real.open_BL.sum()), int(many.suffix_BL.sum())
    assert 0.2 * slots < left < 0.8 * slots
    assert int(other.open_BL.sum()) == left
    assert not torch.equal(real.open_BL, other.open_BL)
    assert not (other.open_BL & ~many.suffix_BL).any()
    if control == "truncate":
        lengths_B = other.open_BL.sum(1)
        first_BL = many.suffix_BL & (many.suffix_BL.cumsum(1) <= lengths_B[:, None])
        assert torch.equal(other.open_BL, first_BL), "the first ones, without a hole"
        whole = int(lengths_B.max()) - 1
        rest_B = lengths_B < many.suffix_BL.sum(1)  # what a shorter suffix has cannot be more
        assert set(lengths_B[rest_B].tolist()) == {whole, whole + 1}, "at most one slot apart"
    else:
        confident = confidence(many.signal["entropy"], V)
        outside = many.suffix_BL & ~other.open_BL
        difference = confident[other.open_BL].mean() - confident[outside].mean()
        assert abs(float(difference)) < 0.01


@pytest.mark.parametrize(
    "fields",
    [
        {"survival_target": 0.5},
        {"tau": 0.22, "control": "random"},
        {"tau": 0.22, "control": "truncate"},
    ],
)
def test_two_ranks_decide_as_one(many, fields):
    """Sums are recorded from both halves first, then handed out."""
    memory = {}
    whole = gated(many, memory, **fields)
    shares = [many.rows(slice(0, 100)), many.rows(slice(100, 200))]
    answers, memories = None, []
    opens = []
    for _ in range(6):  # each round fixes one more of the sums that later ones depend on
        logs, opens, memories = ([], []), [], [{}, {}]
        for rank, share in enumerate(shares):
            ranks = Half(rank, logs[rank], answers)
            opens.append(gated(share, memories[rank], ranks, **fields).open_BL)
        answers = [one + two for one, two in zip(*logs, strict=True)]
    assert torch.equal(torch.cat(opens), whole.open_BL)
    assert memories[0] == memories[1] == pytest.approx(memory)


def test_gather_keeps_order_and_leaves_out_what_is_not_counted():
    value = torch.tensor([[1.0, 2.0], [3.0, math.inf]])
    counted = torch.tensor([[True, False], [True, True]])
    assert gather(SingleProcess(), value, counted).tolist() == [1.0, 3.0, math.inf]
    logs = ([], [])
    for rank in (0, 1):
        gather(Half(rank, logs[rank]), value + 10 * rank, counted)
    answer = [logs[0][0] + logs[1][0]]
    both = gather(Half(0, [], answer), value, counted)
    assert both.tolist() == [1.0, 3.0, math.inf, 11.0, 13.0, math.inf]


def test_a_threshold_that_closes_everything_is_refused_on_the_first_rollouts(many):
    with pytest.raises(InputError, match=r"objective\.gate\.tau 0\.9 closes 100\.0%.*survival_tar"):
        gated(many, tau=0.9)
    memory = {}
    gated(many, memory, tau=0.22)
    assert 0.01 < memory["gate/first_survival"] < 1
    gated(many, memory, tau=0.9)  # later, it is a number to watch and no mistake in a config


def test_steps_without_rollouts_neither_calibrate_nor_refuse(batch_of):
    batch = batch_of([[0.3, 0.2]], prefix=[2])
    memory = {}
    found = gated(batch, memory, tau=0.9)
    assert not found.open_BL.any()
    gated(batch, memory, survival_target=0.5)
    assert memory == {}


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ({"mode": "none", "survival_target": 0.5}, "mode is none"),
        ({"tau": 0, "control": "random"}, "this one closes nothing"),
        ({"tau": 1.0}, "tau"),
        ({"survival_target": 0.0}, "survival_target"),
    ],
)
def test_gates_that_contradict_themselves_are_refused(tree, reason):
    with pytest.raises(InputError, match=reason):
        validate(GateConfig, tree, source="run.toml")
