"""A run folder's config names every field of its kinds; another kind by override still works."""

from pathlib import Path

import pytest
from building.objectives import WITH

from common.config.plugins import kinds
from common.config.schema import dump_toml
from deploy.main import main
from deploy.run_folder.opening import open_run

TWO_STAGES = ["models.student={kind='dd2_llamagen'}", "rollout.class_dropout=0"]
FITTING = {
    ("models.student", "var"): ["tokenizer.kind=multiscale_kmeans"],
    ("models.teacher", "arpg"): ["models.teacher.depth=4"],
    ("models.teacher", "var"): ["tokenizer.kind=multiscale_kmeans"],
    ("objective", "dd1"): [
        "models.student={kind='dd1_llamagen'}",
        "contexts.sources={teacher={sampling={flow={}}},data={ratio=0},student={ratio=0}}",
        "rollout.class_dropout=0",
    ],
    ("objective", "sampled_rkl"): ["contexts.sources.student.ratio=1"],
    ("objective", "dd2_gts"): [
        *TWO_STAGES,
        "contexts.sources={teacher={},data={ratio=0},student={ratio=0}}",
    ],
    ("objective", "dd2_csd"): [
        *TWO_STAGES,
        "contexts.sources={student={min_prefix=0,max_prefix=0},data={ratio=0}}",
        *("learner.max_staleness=0", "learner.publish_every=1"),
    ],
    ("objective", "privileged"): ["teacher.peek=0.5"],
    **{("objective", kind): list(how) for kind, how in WITH.items()},
}
"""What else has to change with a kind."""
PACKAGES = {
    "objective": "learner.objectives",
    "models.student": "common.models.backbones",
    "models.teacher": "common.models.backbones",
    "tokenizer": "common.tokenization.tokenizers",
    "teacher.signal": "common.exchange.signals",
}
CHANGES = [(key, kind) for key, package in PACKAGES.items() for kind in kinds(package)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run folder with a resolved config, as every command leaves one."""
    root = tmp_path_factory.mktemp("run")
    (root / "config.toml").write_text(dump_toml(open_run(Path("smoke"), [])[0]))
    return root


@pytest.mark.parametrize(("key", "kind"), CHANGES)
def test_every_kind_is_taken_over_a_run_folder(folder, key, kind):
    config, _ = open_run(folder, [f"{key}.kind={kind}", *FITTING.get((key, kind), [])])
    found = config
    for name in key.split("."):
        found = getattr(found, name)
    assert found.kind == kind


def test_a_run_of_another_objective_starts_beside_the_one_before(run_in, tiny_overrides, logged):
    _, workspace = run_in()
    folder, beside = str(workspace.root), str(workspace.root.with_name("gkd"))
    with pytest.raises(SystemExit) as ended:
        main(["distill", "smoke", "--local", "--out", folder, *tiny_overrides, "learner.max_lag=1"])
    assert not ended.value.code
    assert "learner.max_lag is called max_staleness now" in logged.getvalue()
    with pytest.raises(SystemExit) as ended:
        main(
            ["distill", folder, "--local", "--from", folder, "--out", beside, "objective.kind=gkd"]
        )
    assert not ended.value.code
    assert "objective.kind is gkd instead of varkd: dropped" in logged.getvalue()
    made, _ = open_run(Path(beside), [])
    assert (made.objective.kind, made.learner.max_staleness) == ("gkd", 1)
