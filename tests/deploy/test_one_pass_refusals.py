"""What a run with a one-pass student refuses: one sentence, and nothing is written."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from building.one_pass import SMALL, open_pairs
from building.runs import go, tree

from common.data.tokens import load_tokens, read_header, write_tokens
from common.errors import InputError
from common.tokenization.tokenizer import load_tokenizer, save_tokenizer
from deploy.run_folder.opening import open_run
from deploy.run_folder.shipped import shipped
from deploy.stages.pretrain import pretrain
from rollout.evaluation.one_pass import Passes, vector_batches


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["models.student={kind='var'}"], "trains a student of kind dd1_llamagen, dd1_var, but"),
        (["objective={kind='kd'}"], "trains a student of kind .*, but models.student.kind is dd1"),
        (["models.student.kind=linear"], "but models.student.kind is linear; choose another"),
        (["models.student={kind='dd1_var'}"], "starts from a var, but teacher is a llamagen"),
        (["models.student.backbone={width=48}"], "backbone.width is 48, but the teacher's is 32"),
        (["models.student.backbone={kind='var'}"], "kind is var, but here it can only be llamagen"),
        (["models.student.positions=[1,17]"], "end behind the sequence of 16 tokens"),
        (["models.student.positions=[2,5]"], "positions 2, 5 do not rise from 1"),
        (["models.student.split=17"], "split is 17, but a sequence has 16 tokens"),
        (["evaluate.steps=[1,3]"], "evaluate.steps is 3, but models.student.positions has 2"),
        (["evaluate.inserted=[2,4]"], r"evaluate.inserted is \[2, 4\], but models.student.positi"),
        (["sample.inserted=[5,5]"], r"sample.inserted is \[5, 5\], but models.student.positions"),
        (["sample.steps=3"], "sample.steps is 3, but models.student.positions has 2"),
        (["rollout.class_dropout=0.1"], "belong to their class, but rollout.class_dropout is 0.1"),
        (["contexts.sources.data.ratio=1"], "contexts.sources has data; have contexts.sources.te"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_does_not_go_together_is_one_sentence(prepared, tmp_path, overrides, sentence):
    before = tree(tmp_path)
    with pytest.raises(InputError, match=sentence) as refused:
        go(open_pairs(prepared, tmp_path / "run", *overrides))
    assert "\n" not in str(refused.value)
    assert {name for name in tree(tmp_path) if "tokens/" not in name} <= {
        *before,
        "run/teacher.safetensors",
        "run/tokenizer.safetensors",
    }


def test_a_teacher_that_draws_makes_no_pairs(tmp_path):
    text = shipped("smoke_dd1").read_text()
    (path := tmp_path / "drawn.toml").write_text(text.replace(", flow = {", " }  # {"))
    with pytest.raises(InputError, match=r"sources.teacher.sampling has no flow to make them"):
        open_run(path, [])


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("sampling.flow.steps=12", "was made with sampling .*'steps': 10.* but the run has"),
        ("sampling.flow={kind='rk4_rho'}", "was made with sampling .*dpmpp_3m.* but the run has"),
        ("sampling.guidance=3.0", "was made with sampling .*'scale': 1.5.* but the run has"),
    ],
)
def test_pairs_of_another_flow_are_refused(one_pass_run, override, sentence):
    _, workspace = one_pass_run
    key = f"contexts.sources.teacher.{override}"
    other = open_run(Path("smoke_dd1"), [*SMALL, key], workspace.root)
    before = tree(workspace.root)
    with pytest.raises(InputError, match=sentence):
        go(other, restart=True)
    assert tree(workspace.root) == before


def test_pairs_without_their_seeds_are_refused(one_pass_copy):
    _, workspace = one_pass_copy
    path = workspace.teacher_tokens
    header, found = read_header(path), load_tokens(path)
    path.unlink()
    write_tokens(path, replace(header, seeds=False), [(found.token_NAL, found.label_N)])
    before = tree(workspace.root)
    with pytest.raises(InputError, match=r"has no column seed, so the noise .* is not known"):
        go(one_pass_copy, restart=True)
    assert tree(workspace.root) == before


def test_rows_that_cannot_be_made_again_are_refused(one_pass_copy):
    """Each has its neighbour's seed; as long as one row is right, rounding may explain the rest."""
    _, workspace = one_pass_copy
    path = workspace.teacher_tokens
    header, found = read_header(path), load_tokens(path)
    rows = found.token_NAL, found.label_N
    path.unlink()
    write_tokens(path, header, [(*rows, found.seed_N.roll(1))])
    before = tree(workspace.root)
    with pytest.raises(InputError, match=r"seeds of rows 0, .* give other tokens than are stored"):
        go(one_pass_copy, restart=True)
    assert tree(workspace.root) == before
    seed_N = found.seed_N.roll(1)
    seed_N[0] = found.seed_N[0]
    path.unlink()
    write_tokens(path, header, [(*rows, seed_N)])
    assert go(one_pass_copy, restart=True)[0]["steps"] == 4


def test_other_files_in_the_place_of_the_student_are_refused(one_pass_copy, quiet):
    """Plain weights, positions that were not trained, other codes."""
    config, workspace = one_pass_copy
    wanted = workspace.model(config, "student")
    workspace.student.unlink()
    shutil.copy(workspace.teacher, workspace.student)
    with pytest.raises(InputError, match="holds a backbone, expected a one-pass student"):
        wanted.load()
    shutil.copy(workspace.student_ema, workspace.student)
    more = config.models.student.model_copy(update={"positions": (1, 5, 9)})
    with pytest.raises(InputError, match=r"with positions \[1, 5\], but models.student has pos"):
        replace(wanted, architecture=more).load()
    tokenizer = load_tokenizer(workspace.tokenizer)
    tokenizer.code_VD.add_(0.1)
    workspace.tokenizer.unlink()
    save_tokenizer(workspace.tokenizer, tokenizer, config.tokenizer, size=8, channels=1)
    with pytest.raises(InputError, match=r"codebook .* is not that of the tokenizer"):
        wanted.load()


def test_steps_that_were_not_trained_are_refused(one_pass_run):
    config, workspace = one_pass_run
    student = workspace.model(config, "student").load()
    vectors = vector_batches(student, torch.zeros(2).long(), (0, 1), passes=Passes(3), batch_size=2)
    with pytest.raises(InputError, match=r"steps is 3, but the student was trained at 2 positions"):
        next(vectors)


def test_nothing_is_pretrained_in_the_place_of_the_teacher(one_pass_run, quiet):
    with pytest.raises(InputError, match="--model student: a dd1_llamagen is not trained by max"):
        pretrain(*one_pass_run, "student", quiet)


def test_there_is_no_base_student_to_draw_from(one_pass_run):
    config, workspace = one_pass_run
    with pytest.raises(InputError, match="no student_before is there, for a dd1_llamagen starts"):
        workspace.model(config, "student_before")


def test_a_base_of_plain_weights_is_refused(one_pass_run):
    config, workspace = one_pass_run
    learner = config.learner.model_copy(update={"weights": workspace.teacher})
    with pytest.raises(InputError, match="holds a backbone, expected a one-pass student"):
        go((config.model_copy(update={"learner": learner}), workspace), restart=True)
