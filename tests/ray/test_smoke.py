"""`varkd smoke` while its models are trained side by side: what ends one of them ends all."""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from building.waiting import require_ended

from common.files.snapshots import Snapshots
from deploy.run_folder.workspace import Workspace

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
LONG = ("pretrain.teacher.steps=100000", "pretrain.teacher.checkpoint_every=0")


@contextmanager
def smoke(workspace, *words):
    known = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with subprocess.Popen(
        [sys.executable, "-m", "deploy.main", "smoke", "--out", str(workspace.root), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=known,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_ctrl_c_ends_the_trainings_in_order(tmp_path, tiny_overrides):
    workspace = Workspace(tmp_path / "run")
    with smoke(workspace, *tiny_overrides, *LONG) as process:
        said = ""
        while "pretrain teacher " not in said or "pretrain student " not in said:
            said += (line := process.stdout.readline())
            assert line, said
        everybody = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        said += process.communicate(timeout=120)[0]
    assert process.returncode == 130, said
    done = Snapshots(workspace.pretraining / "teacher").newest_step()
    assert f"stopped by Ctrl-C after step {done}" in said
    assert "varkd smoke: stopped by Ctrl-C; run the same command again" in said
    assert not workspace.teacher.exists()
    require_ended(everybody)


def test_a_model_that_diverges_ends_the_other_training(tmp_path, tiny_overrides):
    workspace = Workspace(tmp_path / "run")
    bad = (
        "pretrain.student.steps=1000",
        "pretrain.student.optimizer={learning_rate=100,weight_decay=100,warmup=0}",
    )
    with smoke(workspace, *tiny_overrides, *LONG, *bad) as process:
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 2, said
    assert re.search(r"varkd smoke: step \d+: the .* is (NaN|infinite)", said)
    assert "lower pretrain.student.optimizer.learning_rate (100)" in said
    assert "Traceback" not in said
    assert not workspace.teacher.exists()
