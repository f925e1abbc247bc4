"""`varkd doctor` on this machine: what is well, and what a damaged device would show."""

import copy
import re

import pytest
import torch

from deploy.doctor.arithmetic import decoding, precision, small_model
from deploy.doctor.finding import examined, judged
from deploy.doctor.machine import machine
from deploy.main import main


def varkd(capsys, *arguments):
    """Exit code, stdout and stderr of one command, in this process."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    out = capsys.readouterr()
    return caught.value.code, out.out, out.err


def test_a_page_of_a_machine_and_a_config(capsys, run_in, tiny_overrides):
    _, workspace = run_in()
    versions = f"rollout.weights_folder={workspace.root.parent}"
    words = ("smoke", "--out", workspace.root, *tiny_overrides, versions)
    code, out, _ = varkd(capsys, "doctor", *words)
    lines = out.splitlines()
    assert (code, lines[-1]) == (0, f"{len(lines) - 1} checks, 0 failed"), out
    assert all(re.match(r"(ok|warn) +[a-z]", line) for line in lines[:-1]), out
    names = " ".join(line[6:28].strip() for line in lines)
    assert "kernels in C" in names
    for name in ("attention bfloat16", "decoding float32", "gloo", "run folder", "made before"):
        assert name in names, name
    assert f"{workspace.root.parent}: writable" in out
    away = [f"{name}=/nowhere/y" for name in ("learner.weights", "teacher.weights")]
    code, out, _ = varkd(capsys, "doctor", *words, *away, "rollout.weights_folder=/nowhere/z")
    assert (code, out.splitlines()[-1].partition("failed: ")[2]) == (
        1,
        "teacher.weights, learner.weights, rollout.weights_folder",
    )
    assert "/nowhere/y: no such file; correct the path" in out
    assert "/nowhere/z: no such folder; make it, or mount it" in out
    code, out, err = varkd(capsys, "doctor", "smoke", "rollout.workers=0")
    assert (code, out) == (2, "")
    assert "rollout.workers" in err


def test_a_device_that_calculates_otherwise_is_found_out():
    """Models that are off by more than rounding stand for it."""
    cpu, generator = torch.device("cpu"), torch.Generator().manual_seed(0)
    plain = small_model(generator)
    half = copy.deepcopy(plain).to(torch.bfloat16)
    assert [precision(plain, half, cpu).state, decoding(plain, cpu).state] == ["ok", "ok"]
    half.head.weight.mul_(1.2)
    assert precision(plain, half, cpu).state == "FAIL"
    half.head.weight[3, 3] = torch.nan
    assert precision(plain, half, cpu).state == "FAIL"
    whole = plain.forward
    plain.forward = lambda *inputs: 1.1 * whole(*inputs)  # decoding takes the steps' own way
    assert decoding(plain, cpu).state == "FAIL"


def test_a_check_that_cannot_be_carried_out_has_failed_and_keeps_what_it_found(tmp_path):
    def check():
        yield judged("first", "well", "")
        raise RuntimeError("CUDA error: out of memory\nsee the log")

    first, second = examined("arithmetic", check)
    assert (first.state, second.state) == ("ok", "FAIL")
    assert "arithmetic" in second.line()
    assert "RuntimeError: see the log" in second.line()
    file = tmp_path / "file"
    file.touch()
    little = {found.name: found for found in machine(tmp_path / "a" / "b", 2.0**40)}
    assert little["run folder"].said.startswith(f"{tmp_path}: writable")
    assert little["shared memory"].state == "warn"
    assert list(tmp_path.iterdir()) == [file], "nothing is left"
