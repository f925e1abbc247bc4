"""`dtype = "auto"` becomes a precision where a run starts, and says which and why."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from common.device import precision
from deploy.config import RunConfig
from deploy.doctor.run_files import run_files
from deploy.main import main
from deploy.run_folder.opening import open_run
from deploy.run_folder.precision import settled_precision

ON_CPU = not torch.cuda.is_available()


@pytest.mark.skipif(
    not (ON_CPU and Path("/proc/cpuinfo").exists()), reason="asks Linux for its CPU"
)
def test_auto_is_what_the_processors_flags_say(config_of):
    flags = Path("/proc/cpuinfo").read_text().split()
    wanted = "bfloat16" if {"amx_tile", "avx512_bf16"} & set(flags) else "float32"
    config, out = config_of("rollout.dtype=auto", "generate.dtype=auto"), io.StringIO()
    settled = settled_precision(config, Console(file=out, width=200))
    assert (settled.rollout.dtype, settled.generate.dtype) == (wanted, wanted)
    assert precision("auto") == getattr(torch, wanted)
    lines = out.getvalue().splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        f"rollout.dtype=auto is {wanted}",
        f"generate.dtype=auto is {wanted}",
    ]


def test_a_precision_that_was_chosen_stays_without_a_word(config_of):
    out = io.StringIO()
    for name in ("float32", "bfloat16"):
        settled = settled_precision(config_of(f"rollout.dtype={name}"), Console(file=out))
        assert settled.rollout.dtype == name
        assert settled.generate.dtype is None
    assert not out.getvalue()


@pytest.mark.skipif(
    not ON_CPU, reason="a machine without GPUs starts a run on those that have them"
)
def test_the_cpu_of_a_head_node_does_not_choose_for_workers_with_gpus(config_of):
    out = io.StringIO()
    config = config_of("rollout.dtype=auto", "generate.dtype=auto", "rollout.gpus=0.5")
    settled = settled_precision(config, Console(file=out, width=200))
    assert (settled.rollout.dtype, settled.generate.dtype) == ("float32", "float32")
    assert out.getvalue().count("the GPUs are on other machines") == 2


@pytest.mark.skipif(not ON_CPU, reason="a machine without GPUs plans for those that have them")
def test_a_dry_run_plans_with_the_precision_that_the_run_will_have(tmp_path, capsys):
    plans = {}
    for name in ("auto", "float32"):
        command = ["distill", "llamagen_l_to_b", "--dry-run", "--out", str(tmp_path / "run")]
        small = [f'models.{role}={{kind="llamagen", depth=2}}' for role in ("teacher", "student")]
        with pytest.raises(SystemExit):
            main([*command, *small, f"rollout.dtype={name}"])
        plans[name] = capsys.readouterr()
    weights = [plan.out.partition("weights: ")[2].partition(" MB")[0] for plan in plans.values()]
    assert weights[0] == weights[1] != ""
    assert "rollout.dtype=auto is float32: the GPUs" in " ".join(plans["auto"].err.split())


@pytest.mark.skipif(not ON_CPU, reason="a machine without GPUs plans for those that have them")
def test_doctor_sizes_versions_by_the_precision_that_the_run_will_have(tmp_path):
    sizes = set()
    for name in ("auto", "float32"):
        small = [f'models.{role}={{kind="llamagen", depth=2}}' for role in ("teacher", "student")]
        fields = [*small, f"rollout.dtype={name}", f"rollout.weights_folder={tmp_path}"]
        config, workspace = open_run(Path("llamagen_l_to_b"), fields, tmp_path / "run")
        found = {finding.name: str(finding) for finding in run_files(config, workspace)}
        sizes.add(found["rollout.weights_folder"].partition("versions of ")[2].partition(" GB")[0])
    assert len(sizes) == 1
    assert float(*sizes) > 0


@pytest.fixture
def config_of(tmp_path):
    def of(*overrides: str) -> RunConfig:
        return open_run(Path("smoke"), [f"out={tmp_path}", *overrides])[0]

    return of
