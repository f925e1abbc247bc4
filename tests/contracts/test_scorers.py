"""What every scorer promises: it adds columns, row by row, and touches nothing that is there."""

from dataclasses import replace

import pytest
import torch
from building.fixtures import SQUARE

from common.config.plugins import kinds, load_plugin
from common.errors import InputError
from common.exchange.trajectory import from_arrow, to_arrow
from teacher_server.scorer import Delivery, ScorerLink
from teacher_server.scorers import teacher, token_logprob


@pytest.fixture
def files(judging_files):
    return judging_files


@pytest.fixture
def record(tiny, sampled):
    batch = sampled(tiny("llamagen", 0, spec=SQUARE))
    return to_arrow(replace(batch, target_token_BL=batch.token_BL.roll(1, 0)))


@pytest.fixture
def taught(files, record):
    """With the teacher's columns, for scorers that come after it."""
    return teacher.Config().build(files).score(record)


def given(kind, record, taught):
    return record if kind == "teacher" else taught


@pytest.mark.parametrize("kind", kinds("teacher_server.scorers"))
def test_a_scorer_adds_columns_and_touches_nothing(kind, files, record, taught):
    config = load_plugin("teacher_server.scorers", kind).Config()
    assert config.actors(files.config).replicas == 1
    scorer, before = config.build(files), given(kind, record, taught)
    after = scorer.score(before)
    added = [name for name in after.schema.names if name not in before.schema.names]
    assert added
    assert all(name.startswith(("signal.", "sequence.")) for name in added)
    if kind != "teacher":  # its columns are those of the signal
        declared = [f"signal.{name}" for name in config.adds_to_tokens()]
        declared += [f"sequence.{name}" for name in config.sequence_columns]
        assert sorted(added) == sorted(declared)
    for name in before.schema.names:
        assert after.column(name).equals(before.column(name)), name
    assert before.schema.metadata.items() - after.schema.metadata.items() <= {
        (b"teacher_seconds", before.schema.metadata.get(b"teacher_seconds"))
    }
    again = scorer.score(before)
    for name in added:
        assert again.column(name).equals(after.column(name)), "the same record, the same columns"


@pytest.mark.parametrize("kind", kinds("teacher_server.scorers"))
def test_what_it_says_of_a_row_does_not_depend_on_the_others(kind, files, record, taught):
    scorer = load_plugin("teacher_server.scorers", kind).Config().build(files)
    batch = from_arrow(given(kind, record, taught))
    whole = from_arrow(scorer.score(to_arrow(batch)))
    part = from_arrow(scorer.score(to_arrow(batch.rows(slice(2, 4)))))
    for fields in ("signal", "sequence"):
        for name, value in getattr(part, fields).items():
            wanted = getattr(whole, fields)[name][2:4]
            torch.testing.assert_close(value, wanted, atol=1e-5, rtol=1e-5)


class Keep:
    """A sink that is full at first."""

    def __init__(self):
        self.records, self.asked = [], 0

    def put(self, record, timeout):
        self.asked += 1
        if self.asked < 3:
            return False
        self.records.append(record)
        return True


def test_a_chain_of_two_ends_in_the_sink_with_both_ones_columns(tiny, files, record):
    """log p(y_t) against the model itself; its mean counts whole data rows and rollout suffixes."""
    sink = Keep()
    last = ScorerLink(token_logprob.Config(chunk_tokens=7), files, onward=Delivery(sink))
    first = ScorerLink(teacher.Config(), files, onward=last)
    assert first.score(record) is True
    assert sink.asked == 3
    (stored,) = sink.records
    batch, model = from_arrow(stored), tiny("llamagen", 1, spec=SQUARE).eval()
    with torch.no_grad():
        logprob_BLV = model(batch.label_B, batch.token_BL, batch.plan).log_softmax(-1)
    assert set(batch.signal) == {"hidden", "entropy", "token_logprob"}
    for b, policy in enumerate(batch.policy):
        start = 0 if policy == "data" else int(batch.prefix_B[b])
        wanted = [float(logprob_BLV[b, t, batch.token_BL[b, t]]) for t in range(4)]
        assert batch.signal["token_logprob"][b].tolist() == pytest.approx(wanted, abs=1e-4)
        mean = sum(wanted[start:]) / max(1, 4 - start)
        assert float(batch.sequence["teacher_logprob"][b]) == pytest.approx(mean, abs=1e-4)


def test_a_scorer_before_the_one_that_it_reads_says_where_it_belongs(files, record):
    with pytest.raises(InputError, match="put it after the table of kind teacher"):
        token_logprob.Config().build(files).score(record)


def test_an_earlier_scorers_columns_survive_the_teacher(files, record):
    batch = from_arrow(record)
    own_BL = torch.ones(batch.token_BL.shape)
    scored = from_arrow(
        teacher.Config().build(files).score(to_arrow(batch.scored({"early": own_BL}, {})))
    )
    assert torch.equal(scored.signal["early"], own_BL)
