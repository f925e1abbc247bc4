"""Rows of a run whose metrics hub, or the way to it, is gone when the last snapshot is written."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from common.errors import RunFailed, ServiceDied
from common.exchange.metric_files import read_rows
from common.exchange.metrics import MetricsHub, MetricsLog
from learner.reported_rows import MOST, ReportedRows


@dataclass
class Mortal:
    """A hub in a process that may die."""

    hub: MetricsHub = field(default_factory=MetricsHub)
    death: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        if self.death is not None:
            raise self.death
        return getattr(self.hub, name)


def row(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 1 / step}


@pytest.mark.parametrize("death", [ServiceDied("gone"), RunFailed("no way to it")])
def test_no_row_is_lost_with_the_hub(death, tmp_path):
    mortal: Any = Mortal()
    reported, log, cursor = ReportedRows(mortal), MetricsLog(tmp_path), 0
    for step in range(1, 10):
        reported.post(row(step))
        if step % 3 == 0:  # its reader sees a third of them later
            found = mortal.since(cursor)
            log.write(found)
            cursor += len(found)
        if step == 5:
            assert reported.pending() == [row(number) for number in range(1, 6)]
    if isinstance(death, ServiceDied):
        mortal.death = death
    for step in (10, 11):
        reported.post(row(step))
    mortal.death = death
    in_snapshot = reported.pending()
    log.close()
    assert [found["step"] for found in read_rows(tmp_path / "metrics.jsonl")] == [*range(1, 10)]
    again = MetricsLog(tmp_path)
    again.write([*in_snapshot, row(12)])
    again.close()
    assert read_rows(tmp_path / "metrics.jsonl") == [row(step) for step in range(1, 13)]


def test_a_hub_that_cannot_be_reached_ends_the_run_and_memory_has_a_bound():
    mortal: Any = Mortal(death=ServiceDied("gone"))
    reported = ReportedRows(mortal)
    for step in range(1, MOST + 5):
        reported.post(row(step))
    assert [found["step"] for found in reported.pending()] == [*range(5, MOST + 5)]
    mortal.death = RunFailed("no way to it")
    with pytest.raises(RunFailed, match="no way to it"):
        reported.post(row(1))
