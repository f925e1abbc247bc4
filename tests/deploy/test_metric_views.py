"""Where rows go beside the run folder: Ray's metrics and their dashboard, loggers, and secrets."""

import io
import json
import re
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from common.errors import InputError
from deploy.backend.ray_metrics import SERIES, RayMetrics, series_of
from deploy.logger import LoggedRun, run_id
from deploy.run_folder.opening import open_run
from deploy.stages.distill import distill
from deploy.stages.run_logs import MOST_WAITING, Aside, RunLogs

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "deploy/grafana/varkd.json").read_text())
SECRET = "wk_0123456789abcdef0123456789abcdef01234567"


def row(step, **more):
    return {"step": step, "time": 1e9 + step, "pid": 7, "version": step, "loss": 1 / step, **more}


def test_the_page_has_a_line_for_every_series():
    table = (ROOT / "docs/metrics.md").read_text().partition("## Series")[2]
    found = re.findall(r"^\| `(\w+)` \| `([\w/]+)\*?` \| (\w*) ?\| (.+) \|$", table, re.M)
    wanted = [(s.exported, key, s.label or "", s.meaning) for key, s in SERIES.items()]
    assert found == wanted
    assert len({series.name for series in SERIES.values()}) == len(SERIES)


def test_the_dashboard_asks_for_series_that_are_there():
    variables = {found["name"]: found for found in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    questions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    legends = [t["legendFormat"] for panel in DASHBOARD["panels"] for t in panel["targets"]]
    questions.append(variables["run"]["definition"])
    ours = {series.exported: {"run", series.label} for series in SERIES.values()}
    for question, legend in zip(questions, [*legends, ""], strict=True):
        (name,) = re.findall(r"ray_\w+", question)
        if name.startswith("ray_varkd_"):
            assert legend.startswith("{{run}}") or not legend, "several runs may be shown"
            assert set(re.findall(r"{{(\w+)}}", legend)) <= ours[name], question
            assert 'run=~"$run"' in question or question == "label_values(ray_varkd_step, run)"
        else:
            assert name == "ray_node_gpus_utilization"
    for panel in DASHBOARD["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}"


def test_a_row_of_a_plug_in_has_a_name_that_prometheus_takes():
    series, labels = series_of("my-loss.x/student")
    assert (series.exported, labels) == ("ray_varkd_my_loss_x", {"context": "student"})
    series, labels = series_of("seconds/wait")
    assert (series.exported, labels) == ("ray_varkd_stage_seconds", {"stage": "wait"})


def test_a_counter_is_there_before_anything_is_counted():
    """Else nobody sees its first event as an increase."""
    told = []

    class Metric:
        def set(self, value, tags):
            pass

        def inc(self, more, tags):
            assert more > 0, "Ray takes no zero"
            told.append(more)

    class Told(RayMetrics):
        def _metric(self, series):
            return Metric()

    metrics = Told("run")
    for lost in (0, 0, 3, 3, 4):
        metrics._tell({"buffer/lost": lost, "loss": 0.5})
    assert [round(more) for more in told] == [0, 3, 1]
    assert sum(told) == 4


def test_a_logger_that_fails_or_hangs_holds_nothing_up():
    said, kept, never = [], [], threading.Event()

    class Kept:
        def write(self, rows):
            kept.extend(rows)

        def close(self):
            kept.append("closed")

    def fail():
        raise OSError("no route to host\nand more")

    def hang():
        never.wait(30)
        return Kept()

    asides = [Aside(start.__name__, start, said.append) for start in (fail, hang, Kept)]
    logs = RunLogs([], asides)
    for step in range(1, MOST_WAITING + 11):
        logs.write([row(step)])
    asides[0].close(5)
    assert said == ["warning: fail failed (OSError: no route to host); the run goes on without it"]
    asides[1].close(0.1)
    assert said[1:] == [
        "warning: hang was still busy 0.1 s after the last step",
        said[2],
    ]
    assert re.fullmatch(r"warning: hang was too slow for \d+ rows", said[2])
    asides[2].close(5)
    assert (kept[0]["step"], kept[-1]) == (1, "closed")
    never.set()


WANDB = """
import json, os
class Settings:
    def __init__(self, **how): pass
class Run:
    step = 3
    def __init__(self, how): self.file = open(os.environ["SEEN"], "w"); self.say(how)
    def say(self, what): print(json.dumps(what, default=vars), file=self.file)
    def log(self, values, step): self.say([step, values])
    def finish(self): self.say("finished"); self.file.close()
def init(**how): return Run(how)
"""
MLFLOW = """
import json, os
from types import SimpleNamespace as Some
class MlflowClient:
    def __init__(self): self.file = open(os.environ["SEEN"], "w")
    def say(self, *what): print(json.dumps(what), file=self.file, flush=True)
    def get_experiment_by_name(self, name): return None
    def create_experiment(self, name): self.say(name); return "7"
    def search_runs(self, ids, question, max_results):
        self.say(ids, question); return [Some(info=Some(run_id="e"))] if "again" in question else []
    def update_run(self, run, status): self.say(run, status)
    def create_run(self, experiment, run_name, tags):
        self.say(run_name, tags); return Some(info=Some(run_id="r"))
    def log_dict(self, run, values, name): self.say(name, values["seed"])
    def log_batch(self, run, metrics): self.say(run, metrics)
    def set_terminated(self, run): self.say("finished")
entities = Some(Metric=lambda *fields: fields)
"""


@pytest.fixture
def seen(tmp_path, monkeypatch):
    """A package that writes down how it is called: give its name and code, get its lines."""
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    monkeypatch.syspath_prepend(tmp_path)

    def by(package, code, *overrides, folder="a run"):
        (tmp_path / f"{package}.py").write_text(code)
        config, _ = open_run(Path("smoke"), [f"loggers.{package}={{}}", *overrides])
        (logger,) = config.loggers.values()
        logger.require()
        run = LoggedRun.of(tmp_path / folder, config.model_dump(mode="json"))
        opened = logger.open(run)
        opened.write([row(3), row(4), {"step": 4, "profile": {}}])
        opened.close()
        sys.modules.pop(package)
        return [json.loads(line) for line in (tmp_path / "seen").read_text().splitlines()], run

    return by


def test_wandb_goes_on_with_its_run_where_that_stopped(seen):
    lines, run = seen("wandb", WANDB, "loggers.wandb.project=mine", "seed=5")
    assert (lines[0]["project"], lines[0]["id"], lines[0]["resume"]) == ("mine", run.id, "allow")
    assert lines[0]["config"]["seed"] == 5
    assert lines[1:] == [[3, {"loss": 1 / 3}], [4, {"loss": 0.25}], "finished"]


def test_mlflow_has_one_run_for_a_run_folder(seen):
    lines, run = seen("mlflow", MLFLOW, "seed=5")
    assert lines == [
        ["varkd"],
        [["7"], f"tags.`varkd.run` = '{run.id}'"],
        ["a run", {"varkd.run": run.id}],
        ["config.json", 5],
        ["r", [["loss", 1 / 3, 1000000003000, 3], ["loss", 0.25, 1000000004000, 4]]],
        ["finished"],
    ]
    again, _ = seen("mlflow", MLFLOW, folder="again")
    assert [line[0] for line in again[1:]] == [["7"], "e", "e", "finished"]
    assert again[2] == ["e", "RUNNING"]
    assert re.fullmatch(r"a-run-[0-9a-f]{6}", run.id)
    assert run_id(run.folder) != run_id(run.folder.with_name("b"))


def test_a_logger_without_its_package_is_refused_before_anything_starts(run_in, quiet):
    run = run_in("loggers.wandb={}")
    with pytest.raises(InputError, match=r"loggers\.wandb needs the package wandb, .* pip install"):
        distill(*run, quiet, local=True)
    assert not run[1].has_run()


def test_secrets_are_nowhere_in_a_run(run_in, monkeypatch):
    """Neither from the environment, nor from a config that should not have them."""
    for name in ("WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN", "RAY_AUTH_TOKEN", "HF_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    for key in ("loggers.wandb.api_key", "loggers.wnadb.api_key"):
        with pytest.raises(InputError, match="loggers") as refused:
            run_in(f"{key}={SECRET}")
        assert SECRET not in str(refused.value)
    said = io.StringIO()
    config, workspace = run_in("learner.steps=2")
    distill(config, workspace, Console(file=said, width=500), local=True)
    assert SECRET not in said.getvalue()
    files = [path for path in workspace.root.rglob("*") if path.is_file()]
    assert {"config.toml", "metrics.jsonl", "distill.json"} <= {path.name for path in files}
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


def test_without_a_cluster_nothing_is_told_to_ray(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    RayMetrics("run").write([row(1)])
