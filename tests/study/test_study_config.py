"""The file of a study: what methods inherit and share, and what is refused before any start."""

import re

import pytest

from common.errors import InputError
from deploy.main import main
from deploy.study.config import open_study


def test_methods_inherit_and_kinds_replace(study_file):
    study = open_study(study_file, [])
    strict, plain = study.run("strict", 3, 9), study.run("varkd", 3, 9)
    assert strict.objective.model_dump()["gate"]["tau"] == 0.3
    assert (strict.seed, strict.learner.steps, strict.learner.export_every) == (3, 9, 5)
    assert strict.contexts == plain.contexts
    assert study.run("kd", 3, 9).contexts.shares()["data"] == 1


def test_a_study_says_once_which_keys_its_methods_kinds_do_not_have(study_file, logged):
    gated = "methods.kd.like='strict'"
    study = open_study(study_file, [gated])
    assert study.run("kd", 0, 4).objective.kind == "kd"
    assert logged.getvalue().count("objective.kind is kd instead of varkd: dropped gate") == 1


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("budget={steps=4,seconds=3}", "give steps or seconds"),
        ("seeds=[1, 1]", "each may occur only once"),
        ("seeds=[]", "seeds"),
        ("baselines=['nobody']", "baselines names 'nobody'"),
        ("methods.kd.tokenizer.patch=1", "methods.kd sets 'tokenizer'"),
        ("methods.kd.learner.steps=1", "methods.kd.learner sets 'steps'"),
        ("methods.kd.objective.kind='nope'", "methods.kd: .*nope"),
        ("methods.kd.like='nobody'", "methods.kd is like 'nobody'"),
        ("methods.varkd.like='strict'", "go in a circle"),
        ("methods.teacher.objective.kind='kd'", "a method is called 'teacher'"),
        ("methods.kd.objective.kind='sampled_rkl'", "learns from rollouts only"),
        ("base='nope'", "base is 'nope'"),
        ("set.learner.stepz=3", "learner.stepz: unknown key; did you mean learner.steps"),
        ("guidance.fixd=3", "guidance.fixd: unknown key; did you mean guidance.fixed"),
    ],
)
def test_a_bad_study_is_refused_before_anything_starts(study_file, capsys, override, words):
    with pytest.raises(SystemExit) as ended:
        main(["study", str(study_file), "--dry-run", override])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert re.search(words, error), error
    assert error.count("\n") == 1


def test_a_dry_run_lists_the_cells_and_writes_nothing(study_file, capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["study", str(study_file), "--dry-run", "--out", str(tmp_path / "nothing")])
    assert not ended.value.code
    assert "3 methods x 2 seeds" in capsys.readouterr().out
    assert not (tmp_path / "nothing").exists()


def test_methods_share_one_dataset_of_the_teachers_samples(study_file):
    reads = "contexts.sources.teacher={source='dataset', sequences=%d}"
    kd, varkd = f"methods.kd.{reads}", f"methods.varkd.{reads}"
    study = open_study(study_file, [kd % 32, varkd % 32])
    assert study.generating is not None
    assert study.generating.seed == study.start.seed
    with pytest.raises(InputError, match=r"methods\.kd and methods\.varkd read other datasets"):
        open_study(study_file, [kd % 32, varkd % 16])
