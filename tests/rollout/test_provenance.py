"""Who sampled a row decides what becomes of it, whatever the context is called."""

import json
import sys

import pytest

import rollout.contexts
from common.config.plugins import load_plugin
from common.exchange.schedule import Schedule
from common.randomness import Draws
from deploy.stages.distill import distill
from rollout.context import ContextsConfig, assign
from rollout.sampler import SamplingConfig

SCHEDULE = Schedule(steps=100, global_batch_size=8, lease_size=8, max_staleness=2, publish_every=1)
LATE = '''"""The student continues what it is given, under another name."""

from rollout.contexts import student


class Config(student.Config):
    pass
'''


@pytest.fixture
def late_student(tmp_path):
    """A context file beside the house's own, gone again after the test."""
    folder = tmp_path / "contexts"
    folder.mkdir()
    (folder / "late_student.py").write_text(LATE)
    rollout.contexts.__path__.append(str(folder))
    yield "late_student"
    rollout.contexts.__path__.remove(str(folder))
    sys.modules.pop("rollout.contexts.late_student", None)


def assignment(images, sampling=None, **sources):
    contexts = ContextsConfig.model_validate({"mix_per": "sample", "sources": sources})
    return assign(
        contexts,
        range(8),
        draws=Draws(3, len(images)),
        schedule=SCHEDULE,
        data=images,
        class_dropout=0.1,
        sampling=sampling or SamplingConfig(),
        generated=images,
    )


def test_a_run_is_the_same_whatever_the_students_context_is_called(run_in, quiet, late_student):
    """Staleness, gate, lag and every diagnostic: all but the name, to the bit."""
    found = {}
    for name in ("student", late_student):
        overrides = ["data.ratio=0.5", "student.ratio=0"]
        overrides.append(f"{name}={{ratio=0.5,min_prefix=0.25,max_prefix=0.75}}")
        config, workspace = run_in(*[f"contexts.sources.{text}" for text in overrides], name=name)
        assert config.contexts.shares()[name] == 0.5
        facts = distill(config, workspace, quiet, local=True)
        assert facts["steps"] == config.learner.steps
        rows = [json.loads(line) for line in (workspace.root / "metrics.jsonl").open()]
        found[name] = [
            {
                key.replace(f"/{name}", "/rollout"): value
                for key, value in row.items()
                if key
                not in ("time", "pid", "images_per_second", "teacher/busy", "teacher/waiting")
                and "seconds" not in key
                and (key != "share/student" or name == "student")
            }
            for row in rows
        ]
    assert found["student"] == found[late_student]
    last = found[late_student][-1]
    assert {"lag_mean", "lag_max", "survival/rollout", "weight/rollout"} <= last.keys()
    assert max(row["lag_max"] for row in found[late_student]) > 0


def test_policy_and_law_are_the_samplers(data, late_student):
    filtered = SamplingConfig(top_k=3)
    for kind in ("student", late_student):
        assert set(assignment(data, **{kind: {}}).policy) == {"student"}
        assert set(assignment(data, **{kind: {}}).law) == {"exact"}
        assert set(assignment(data, filtered, **{kind: {}}).law) == {"approximate"}
    data_rows = assignment(data, filtered, data={})
    assert (set(data_rows.policy), set(data_rows.law)) == ({"data"}, {"exact"})
    for source in ("online", "dataset"):
        rows = assignment(data, filtered, teacher={"source": source})
        assert (set(rows.policy), set(rows.law)) == ({"teacher"}, {"exact"}), "by its own sampling"
        guided = {"source": source, "sampling": {"guidance": 2.0}}
        assert set(assignment(data, teacher=guided).law) == {"approximate"}


def test_shares_are_summed_by_policy(late_student):
    shares = {"data": 1, "student": 2, late_student: 3, "teacher": 4}
    contexts = ContextsConfig.model_validate(
        {"sources": {kind: {"ratio": ratio} for kind, ratio in shares.items()}}
    )
    assert contexts.policies() == pytest.approx({"data": 0.1, "student": 0.5, "teacher": 0.4})


def test_objectives_refuse_and_take_policies(late_student):
    mle = load_plugin("learner.objectives", "mle").Config()
    contexts = ContextsConfig.model_validate({"sources": {late_student: {}}})
    with pytest.raises(ValueError, match="learns from data or teacher sequences only"):
        mle.check(contexts.policies())
