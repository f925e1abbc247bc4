"""Contexts, sampling and the worker: purity, the laws of the method, and honest version stamps."""

import math

import pytest
import torch

from common.errors import InputError, RunFailed
from common.exchange.condition import ClassConditions
from common.exchange.packed_weights import pack, unpack
from common.exchange.schedule import Lease, Schedule
from common.exchange.trajectory import from_arrow
from common.exchange.weights import Canary, Weights
from common.models.filters import filtered_logprob
from common.randomness import Draws
from rollout.config import RolloutConfig
from rollout.context import ContextsConfig, assign
from rollout.sampler import SamplingConfig, decode, draw, noise
from rollout.worker import RolloutWorker

SCHEDULE = Schedule(steps=100, global_batch_size=8, lease_size=4, max_staleness=2, publish_every=1)


def contexts(student=0.5, **fields):
    return ContextsConfig.model_validate(
        {"sources": {"data": {"ratio": 1 - student}, "student": {"ratio": student} | fields}}
        | ({"mix_per": fields.pop("mix_per")} if "mix_per" in fields else {})
    )


def assignment(config, indices, data, **changes):
    options = {"draws": Draws(3, len(data)), "schedule": SCHEDULE, "class_dropout": 0.1}
    options |= {"sampling": SamplingConfig()}
    return assign(config, indices, data=data, **(options | changes))


def test_assignments_are_pure_functions_of_seed_and_index(data):
    whole = assignment(contexts(), range(64), data)
    for start in (40, 0, 8):
        part = assignment(contexts(), range(start, start + 8), data)
        rows = slice(start, start + 8)
        assert part.context == whole.context[rows]
        for name in ("label_B", "prefix_B", "cell_BL"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rows])
    other = assignment(contexts(), range(64), data, draws=Draws(4, len(data)))
    assert not torch.equal(other.cell_BL, whole.cell_BL)


def test_the_coin_is_tossed_per_step_or_per_sample(data):
    by_step = assignment(contexts(0.3), range(8000), data).context
    steps = [set(by_step[i : i + 8]) for i in range(0, 8000, 8)]
    assert all(len(kinds_) == 1 for kinds_ in steps)
    assert by_step.count("student") / 8000 == pytest.approx(0.3, abs=0.05)
    mixed = ContextsConfig.model_validate({**contexts(0.3).model_dump(), "mix_per": "sample"})
    by_sample = assignment(mixed, range(8000), data).context
    assert by_sample.count("student") / 8000 == pytest.approx(0.3, abs=0.02)
    assert any(len(set(by_sample[i : i + 8])) == 2 for i in range(0, 80, 8))


def test_prefix_law_is_uniform_on_its_integers(data):
    length = data.spec.length
    found = assignment(contexts(1.0), range(6000), data).prefix_B
    low, high = math.ceil(0.25 * length), math.floor(0.75 * length)
    counts = torch.bincount(found, minlength=length + 1)
    assert counts[:low].sum() == 0
    assert counts[high + 1 :].sum() == 0
    expected = 6000 / (high - low + 1)
    assert (counts[low : high + 1] - expected).abs().max() < 0.1 * expected
    per_step = assignment(contexts(1.0, prefix_per="batch"), range(80), data).prefix_B.view(10, 8)
    assert (per_step == per_step[:, :1]).all()
    assert (assignment(contexts(0.0), range(9), data).prefix_B == length).all()


def test_context_tables_are_validated():
    with pytest.raises(ValueError, match="every ratio is 0"):
        ContextsConfig.model_validate({"sources": {"data": {"ratio": 0}}})
    with pytest.raises(ValueError, match=r"choose one of: data, parallel, .*student, teacher"):
        ContextsConfig.model_validate({"sources": {"dream": {"ratio": 1}}})
    with pytest.raises(ValueError, match=r"min_prefix 0\.9 is larger than max_prefix 0\.2"):
        contexts(1.0, min_prefix=0.9, max_prefix=0.2)


def test_inverse_cdf_draws_follow_the_distribution():
    logprob = torch.tensor([0.1, 0.0, 0.6, 0.3]).log()
    count = 20000
    drawn = draw(logprob.expand(count, 1, 4), noise(range(count), 1))
    share = torch.bincount(drawn.flatten(), minlength=4) / count
    torch.testing.assert_close(share, logprob.exp(), atol=0.012, rtol=0)
    edges = torch.tensor([[0.0], [1 - 2**-53]], dtype=torch.float64)
    zero_at_both_ends = torch.tensor([0.0, 0.5, 0.5, 0.0]).log().expand(2, 1, 4)
    assert draw(zero_at_both_ends, edges).flatten().tolist() == [1, 2]


def test_top_k_keeps_ties_and_temperature_sharpens():
    logit = torch.tensor([[[1.0, 3.0, 3.0, 0.0]]])
    kept = filtered_logprob(logit, SamplingConfig(top_k=1)).exp()
    assert kept.flatten().tolist() == pytest.approx([0, 0.5, 0.5, 0])
    cold = filtered_logprob(logit, SamplingConfig(temperature=0.1)).exp()
    assert float(cold[0, 0, 0]) < 1e-8


class Reversed(ClassConditions):
    """Ids from the last class to the first, which here stands for no condition."""

    def resolve(self, id_B):
        return self.num_classes - id_B


@pytest.mark.parametrize(("table", "null_class"), [(None, 3), (Reversed(3), 0)])
@torch.no_grad()
def test_guided_decoding_is_the_guided_distribution(tiny, table, null_class):
    student = tiny("llamagen")
    spec, plan = student.spec, student.plan([0, 1])
    label_B = torch.tensor([0, 2])
    decoded = decode(
        student,
        label_B,
        sampling=SamplingConfig(guidance=2.0),
        noise_BL=noise([1, 2], spec.length),
        plan=plan,
        conditions=table,
    )
    class_B = 3 - label_B if table else label_B
    null_B = torch.full_like(class_B, null_class)
    with_class, without = (student(c, decoded.token_BL, plan) for c in (class_B, null_B))
    guided = (without + 2 * (with_class - without)).log_softmax(-1)
    replayed = guided.gather(-1, decoded.token_BL[..., None])[..., 0]
    torch.testing.assert_close(decoded.logprob_BL, replayed, atol=1e-4, rtol=1e-4)


class History:
    """Weights that change under the worker's feet; remembers every version."""

    def __init__(self, bundles):
        self.bundles = bundles
        self.now = 0

    def newest(self, timeout):
        return self.now

    def get(self, version, timeout):
        return self.bundles[version]


class Keep:
    def __init__(self):
        self.records = []

    def score(self, record):
        self.records.append(record)
        return True


@torch.no_grad()
def test_a_record_stamped_v_was_sampled_with_weights_v(tiny, data):
    """Checked by re-scoring with each version: its own fits, every other does not."""
    from common.models.backbones import llamagen

    models = {version: tiny("llamagen", seed=version) for version in (0, 3, 7)}
    bundles = {v: Weights.of(v, pack(m, torch.float32)) for v, m in models.items()}
    history, teacher = History(bundles), Keep()
    worker = RolloutWorker(
        RolloutConfig(batch_size=4),
        contexts(1.0, min_prefix=0.0, max_prefix=0.5),
        llamagen.Config.tiny(),
        name="w",
        schedule=SCHEDULE,
        draws=Draws(0, len(data)),
        data=data,
        scorers=teacher,
        weights=history,
        ledger=None,
    )
    for number, now, pinned in ((0, 0, None), (1, 3, None), (2, 7, 3), (3, 7, None), (4, 7, 0)):
        history.now = now
        lease = Lease(number, number * 4, 4, 0, pinned, 1)
        batch = from_arrow(worker.sample(lease))
        stamped = int(batch.version_B[0])
        assert stamped == (now if pinned is None else pinned)
        for version, model in models.items():
            logprob = model(batch.label_B, batch.token_BL, batch.plan).log_softmax(-1)
            replayed = logprob.gather(-1, batch.token_BL[..., None])[..., 0]
            difference = (replayed - batch.logprob_BL)[batch.suffix_BL].abs().max()
            assert (float(difference) < 1e-4) == (version == stamped)


class LastLease:
    """A ledger during whose answer the worker is told to stop."""

    def lease(self, worker, timeout):
        self.worker.stop()
        return Lease(0, 0, 4, 0, None, 1)


class Refuses:
    def score(self, record):
        raise InputError("tokens.parquet: of another tokenizer")


def test_what_is_being_scored_when_a_worker_is_told_to_stop_counts_or_says_what_is_wrong(
    tiny, data
):
    from common.models.backbones import llamagen

    bundle, kept = Weights.of(0, pack(tiny("llamagen"), torch.float32)), Keep()

    def run(scorers):
        ledger = LastLease()
        ledger.worker = RolloutWorker(
            RolloutConfig(batch_size=4),
            contexts(1.0),
            llamagen.Config.tiny(),
            name="w",
            schedule=SCHEDULE,
            draws=Draws(0, len(data)),
            data=data,
            scorers=scorers,
            weights=History({0: bundle}),
            ledger=ledger,
        )
        return ledger.worker.run()

    assert run(kept) == len(kept.records) == 1
    with pytest.raises(InputError, match=r"^tokens\.parquet: of another tokenizer$"):
        run(Refuses())


def test_weights_that_compute_something_else_here_are_not_sampled_with(tiny, data):
    from common.models.backbones import llamagen

    bundle = Weights.of(0, pack(tiny("llamagen"), torch.float32), canary=Canary(-1.0))
    worker = RolloutWorker(
        RolloutConfig(batch_size=4),
        contexts(1.0),
        llamagen.Config.tiny(),
        name="worker-7",
        schedule=SCHEDULE,
        draws=Draws(0, len(data)),
        data=data,
        scorers=Keep(),
        weights=History({0: bundle}),
        ledger=None,
    )
    with pytest.raises(RunFailed, match=r"^worker-7, version 0: computes other"):
        worker.sample(Lease(0, 0, 4, 0, 0, 1))


def test_published_weights_survive_the_trip(tiny):
    model = tiny("llamagen")
    back = unpack(Weights.of(1, pack(model, torch.float32)).verified())
    for name, value in model.state_dict().items():
        assert torch.equal(back[name], value)
    half = unpack(pack(model, torch.bfloat16))
    assert {value.dtype for value in half.values()} == {torch.bfloat16}
