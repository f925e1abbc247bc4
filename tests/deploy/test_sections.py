"""Every field acts in its own section: told by a device that this machine does not have."""

from pathlib import Path

import pytest
import torch

from common.errors import InputError
from deploy.main import main
from deploy.run_folder.on_cpu import on_cpu
from deploy.run_folder.opening import open_run
from deploy.stages.classifier import classifier_facts
from deploy.stages.generate import generate
from deploy.stages.pretrain import pretrain_model
from deploy.stages.pretrain_tokenizer import pretrain_tokenizer
from deploy.stages.quality import assess

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")

ELSEWHERE = ["learner.device=cuda", "rollout.device=cuda", "teacher.device=cuda"]
"""Of distillation alone: they hold nobody else up."""
DATASET = "contexts.sources.teacher={source='dataset', sequences=8}"


def refused():
    return pytest.raises(InputError, match="torch sees no CUDA device")


@pytest.mark.parametrize("which", ["teacher", "student"])
def test_pretraining_runs_on_its_own_device(run_in, quiet, which):
    short = f"pretrain.{which}.steps=2"
    with refused():
        made = run_in(short, f"pretrain.{which}.device=cuda")
        pretrain_model(*made, which, quiet, restart=True)
    made = run_in(short, *ELSEWHERE)
    assert pretrain_model(*made, which, quiet, restart=True)["steps"] == 2
    made = run_in(short, f"pretrain.{which}.device=cpu")
    facts = pretrain_model(*made, which, quiet)
    assert facts["steps"] == 2, "the file does not depend on the device, and stays"


def test_a_tokenizer_is_trained_on_its_own_device(tmp_path, quiet):
    tiny = [
        "tokenizer={kind='conv_vq', width=32, patch=2, code_width=4}",
        "pretrain.tokenizer.steps=2",
    ]
    with refused():
        run = open_run(Path("smoke"), [*tiny, "pretrain.tokenizer.device=cuda"], tmp_path)
        pretrain_tokenizer(*run, quiet)
    run = open_run(Path("smoke"), [*tiny, *ELSEWHERE], tmp_path)
    assert pretrain_tokenizer(*run, quiet)["steps"] == 2


def test_evaluation_and_its_classifier_run_on_their_own_device(run_in, quiet):
    few = ("evaluate.samples=20", "evaluate.reference_images=20", "evaluate.classifier.steps=2")
    with refused():
        classifier_facts(*run_in(*few, "evaluate.device=cuda"), quiet)
    run = run_in(*few, *ELSEWHERE)
    classifier_facts(*run, quiet)
    assert assess(*run, quiet).metrics["teacher"]["fid"] > 0
    with refused():
        assess(*run_in(*few, "evaluate.device=cuda"), quiet)


def test_samples_are_drawn_on_their_own_device(run_in, tiny_overrides, capsys):
    _, workspace = run_in()
    command = ["sample", "smoke", "--model", "teacher", "--out", str(workspace.root)]
    command += ["--per-class", "1", "--classes", "3", *tiny_overrides]
    for own, code in (("sample.device=cuda", 2), ("sample.batch_size=1", 0)):
        with pytest.raises(SystemExit) as ended:
            main([*command, *ELSEWHERE, "evaluate.device=cuda", own])
        assert ended.value.code == code, capsys.readouterr().err


def test_the_teachers_dataset_is_sampled_by_actors_of_its_own(own_tokens, quiet):
    with refused():
        generate(*own_tokens(DATASET, "generate.device=cuda"), quiet, local=True)
    run = own_tokens(DATASET, "rollout.device=cuda", "generate.device=cpu")
    assert generate(*run, quiet, local=True)["sequences"] == 8
    config, _ = own_tokens("rollout.gpus=0.5", "rollout.workers=3", "generate.workers=7")
    assert (config.generating.gpus, config.generating.workers) == (0.5, 7)
    assert config.rollout.workers == 3


def test_the_cpu_option_moves_every_section(tmp_path):
    shipped, _ = open_run(Path("arpg_xxl_to_l"), ["generate.gpus=1", "generate.device=cuda"])
    moved, changes = on_cpu(shipped)
    pretrain = moved.pretrain
    devices = [s.device for s in (pretrain.teacher, pretrain.student, pretrain.tokenizer)]
    devices += [s.device for s in (moved.evaluate, moved.sample, moved.generating, moved.learner)]
    assert devices == ["cpu"] * 7
    assert (moved.generating.gpus, moved.generating.dtype) == (0, "float32")
    assert "generate.gpus 1 -> 0" in changes
    assert not any("none" in change.lower() for change in changes)
