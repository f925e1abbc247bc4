"""The teacher computes entropies where the run reads them."""

import pytest
import torch
from building.records import START

from common.data.tokens import load_tokens
from common.exchange.packed_weights import pack
from common.exchange.trajectory import from_arrow
from common.exchange.weights import Weights
from deploy.backend.launcher import LocalLauncher
from deploy.pipeline import wire
from teacher_server.scorer import OwnActorsConfig


class Passing:
    def score(self, record):
        return record


class Curious(OwnActorsConfig):
    """Says nothing of what it reads."""

    def build(self, files):
        return Passing()


class Incurious(Curious):
    reads_entropy = False


def columns(config, workspace):
    """The teacher's, in the first record of a run."""
    data, teacher = load_tokens(workspace.train_tokens), workspace.model(config, "teacher")
    services, workers, _ = wire(config, data, teacher, LocalLauncher())
    student = workspace.model(config, "student_before").load()
    services.weights.publish(Weights.of(0, pack(student, torch.float32)))
    services.ledger.restore(START)
    worker = workers.make("worker-0")
    assert worker.produce()
    assert worker.produce()
    share = services.buffer.take(0, shard=0, shards=1, timeout=0)
    return set(from_arrow(share.records[0]).signal)


@pytest.mark.parametrize(
    ("overrides", "scorer", "there"),
    [
        ([], Incurious, True),
        (["objective.gate.mode=none", "objective.gate.weight=none"], Incurious, False),
        (["objective.kind=kd"], Incurious, False),
        (["objective.kind=kd"], Curious, True),
    ],
)
def test_records_carry_entropies_where_gate_or_scorer_may_read_them(
    run_in, overrides, scorer, there
):
    config, workspace = run_in(*overrides)
    scorers = config.scorers | {"mine": scorer()}
    found = columns(config.model_copy(update={"scorers": scorers}), workspace)
    assert found == ({"hidden", "entropy"} if there else {"hidden"})
