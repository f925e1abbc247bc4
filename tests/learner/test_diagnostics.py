"""Curves by slot against loops over every token, and the panels that are drawn of them."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from building.objectives import built
from matplotlib.figure import Figure

from common.exchange.entropy import entropies
from common.exchange.metrics import PROFILE, MetricsLog
from common.exchange.signals import guided_hidden
from common.files.tensors import state_digest
from deploy.report.plots import NO_CLUSTERS, NO_ROLLOUTS, draw_diagnostics
from deploy.report.summary import by_context, final_numbers
from learner.categorical import Categorical
from learner.config import LearnerConfig
from learner.learner import Learner
from learner.objectives import kd, mle, varkd
from learner.relaxation import cluster_logprob, number_by_first_code
from learner.teacher_targets import TeacherTargets
from teacher_server.teacher import guided_features

V, L = 24, 6
CLUSTERS = number_by_first_code(torch.arange(V) // 4)


@pytest.fixture
def models(tiny):
    found = tiny("llamagen", 0), tiny("llamagen", 1)
    for module in (*found[0].modules(), *found[1].modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return found


@pytest.fixture
def batch(models, sampled):
    """Two data rows and three rollouts with prefixes 0, 2 and 4, scored."""
    given = sampled(models[0])
    with torch.no_grad():
        hidden_BLC = guided_features(models[1], given, None)
        columns = guided_hidden.Config().encode(hidden_BLC, models[1].head)
        columns["entropy"] = entropies(hidden_BLC, models[1].head)
    return given.scored(columns, {"head": state_digest(models[1].head)})


@pytest.fixture
def windows(models):
    """Metrics of one step, and its window of curves."""

    def build(objective, batch):
        head = copy.deepcopy(models[1].head)
        learner = Learner(
            LearnerConfig(profile_every=1),
            built(objective, CLUSTERS),
            copy.deepcopy(models[0]),
            seed=0,
            contexts=("data", "student", "unused"),
            teacher=TeacherTargets(guided_hidden.Config(), head, state_digest(head)),
        )
        return learner.step(batch), learner.profile.take()

    return build


def expected(models, batch, tau):
    """{(curve, slot): values} by loops over rows and slots (docs/method.md, "Diagnostics")."""
    with torch.no_grad():
        q, p = (m(batch.label_B, batch.token_BL, batch.plan).log_softmax(-1) for m in models)
        coarse_q, coarse_p = (cluster_logprob(Categorical(of), CLUSTERS) for of in (q, p))
    found = {}

    def put(name, slot, value):
        found.setdefault((name, slot), []).append(float(value))

    for b, context in enumerate(batch.context):
        start, still_open = (0 if context == "data" else int(batch.prefix_B[b])), True
        for t in range(start, L):
            qt, pt = q[b, t], p[b, t]
            alpha = 1 + float((pt.exp() * pt).sum()) / math.log(V)
            put(f"confidence/{context}", t, alpha)
            relaxed = (coarse_q[b, t].exp() * (coarse_q[b, t] - coarse_p[b, t])).sum()
            full = (qt.exp() * (qt - pt)).sum()
            if context != "data":
                put(f"survival/{context}", t, still_open)
                put(f"survival_by_distance/{context}", t - start, still_open)
                put(f"weight/{context}", t, alpha * still_open)
                if still_open and (b + t) % 8 == 0:
                    put(f"between_clusters/{context}", t, relaxed)
                    put(f"within_clusters/{context}", t, full - relaxed)
            if context == "data" or still_open:
                forward = (pt.exp() * (pt - qt)).sum()
                put(f"divergence/{context}", t, forward if context == "data" else relaxed)
                if (b + t) % 8 == 0:
                    put(f"student_entropy/{context}", t, -(qt.exp() * qt).sum())
            still_open = still_open and alpha >= tau
    return found


def test_curves_are_those_of_loops_over_every_token(models, batch, windows):
    alpha_BL = 1 - batch.signal["entropy"] / math.log(V)
    tau = float(alpha_BL[2:].flatten().kthvalue(4).values) + 1e-4
    metrics, window = windows(varkd.Config.model_validate({"gate": {"tau": tau}}), batch)
    wanted = expected(models, batch, tau)
    assert {curve for curve, _ in wanted} == window["curves"].keys()
    for name, curve in window["curves"].items():
        for slot in range(L):
            values = wanted.get((name, slot), [])
            assert curve["count"][slot] == len(values), (name, slot)
            if values:
                mean = sum(values) / len(values)
                assert curve["mean"][slot] == pytest.approx(mean, rel=1e-4, abs=1e-5), name
            else:
                assert curve["mean"][slot] is None
        total = [
            value for (other, _), values in wanted.items() if other == name for value in values
        ]
        if not name.startswith("survival_by"):
            assert metrics[name] == pytest.approx(sum(total) / len(total), rel=1e-4)
    assert 0 < metrics["survival/student"] < 1
    opened = sum(sum(v) for (name, _), v in wanted.items() if name == "survival/student")
    assert metrics["open_length/student"] == pytest.approx(opened / 3)
    assert (metrics["share/data"], metrics["share/student"]) == (0.4, 0.6)
    entropy = batch.signal["entropy"][:2].mean()
    assert metrics["teacher_entropy/data"] == pytest.approx(float(entropy), rel=1e-5)


def test_terms_of_the_chain_rule_add_up_to_the_whole_divergence(batch, windows):
    """One rollout, whose token at slot 3 is watched; a loss without clusters has the sum."""
    one = replace(batch.rows(slice(2, 3)), id_B=torch.tensor([5]))
    found = []
    for mix in (1.0, 0.0):
        objective = {"gate": {"mode": "none"}, "relaxation": {"mix": mix}}
        found.append(windows(varkd.Config.model_validate(objective), one)[1]["curves"])
    between, within = (found[0][f"{name}_clusters/student"] for name in ("between", "within"))
    assert between["count"] == within["count"] == [0, 0, 0, 1, 0, 0]
    assert within["mean"][3] > 1e-3
    for mix, share in ((0, 1), (1, 0)):
        wanted = found[1 - mix]["divergence/student"]["mean"][3]
        total = between["mean"][3] + share * within["mean"][3]
        assert total == pytest.approx(wanted, rel=1e-4)


def test_curves_go_to_a_file_of_their_own(tmp_path):
    log = MetricsLog(tmp_path)
    log.write([{"step": 1, "loss": 0.5}, {"step": 1, PROFILE: {"first": 1}}])
    log.close()
    again = MetricsLog(tmp_path)
    again.write([{"step": 2, PROFILE: {"first": 2}}])
    again.close()
    lines = (tmp_path / "profiles.jsonl").read_text().splitlines()
    assert [json.loads(line)[PROFILE]["first"] for line in lines] == [1, 2]
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.5}\n'


def panels(metrics, profiles):
    figure = Figure()
    rows = [{"step": 1, "seconds/wait": 0.1, **metrics}] if metrics else []
    draw_diagnostics(figure, rows, profiles, 0.1)
    figure.canvas.draw()
    return figure.axes


def test_every_panel_is_drawn_or_says_why_not(batch, windows):
    metrics, window = windows(varkd.Config(), batch)
    full = panels(metrics, [window, {**window, "first": 2, "last": 2}])
    assert [len(axis.lines) for axis in full] == [5, 2, 2, 4, 1, 4]
    assert not any(axis.texts for axis in full)
    one = panels(metrics, [window])
    assert [len(axis.lines) for axis in one] == [3, 1, 2, 4, 1, 2]
    for objective in (kd.Config(), mle.Config()):
        found, curves = windows(objective, batch.rows(slice(0, 2)))
        data = panels(found, [curves])
        said = [[text.get_text() for text in axis.texts] for axis in data]
        assert said == [[NO_ROLLOUTS], [NO_ROLLOUTS], [NO_ROLLOUTS], [], [], [NO_ROLLOUTS]]
        assert [len(axis.lines) for axis in data] == [2, 0, 0, 2, 1, 1]
    metrics, window = windows(kd.Config(), batch)
    assert NO_CLUSTERS in panels(metrics, [window])[2].texts[0].get_text()
    _, window = windows(mle.Config(), batch)  # what has no loss has a teacher all the same
    assert window["curves"]["confidence/student"]["count"] == [1, 1, 2, 2, 3, 3]
    assert "survival/student" not in window["curves"]
    unprofiled = panels(metrics, [])
    assert "learner.profile_every" in unprofiled[0].texts[0].get_text()
    for axis in panels({}, []):
        assert axis.texts
        assert not axis.lines


def test_final_numbers_are_those_of_the_last_tenth():
    rows = [{"step": n, "survival/student": n, "gate/tau": 0.1} for n in range(1, 301)]
    rows[-1]["seconds/wait"] = 2.0
    found = final_numbers(rows)
    assert found["steps"] == {"first": 271, "last": 300}
    assert found["survival"]["student"] == pytest.approx(285.5)
    assert found["seconds"] == {"wait": 2.0}
    assert final_numbers([]) == {}
    assert by_context(rows)["gate"]["tau"] == pytest.approx(0.1)
