"""Distilled Decoding 1 through the pipeline, on real digits: a dataset of pairs, a run in one
process and on Ray, what reads the student afterwards, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from building.one_pass import SMALL, distilled, open_pairs
from building.runs import go, rows_of
from PIL import Image
from torch.nn import functional as F

from common.artifacts.backbone_file import load_backbone
from common.artifacts.generator_file import load_generator, load_released
from common.data.tokens import load_tokens, read_header
from common.errors import InputError
from common.files.snapshots import Snapshots
from common.models.few_steps import nearest
from common.models.generator import gaussian
from common.models.plan import natural_plan
from common.tokenization.tokenizer import load_tokenizer
from deploy.planning.plan import plan_run
from deploy.run_folder.identity import identify
from deploy.run_folder.opening import open_run
from deploy.stages.boards import draw_grids
from deploy.stages.distill import distill
from deploy.stages.draw import draw_batches, load_for_sampling, teacher_between
from deploy.stages.evaluate import write_report
from deploy.stages.export import export
from deploy.stages.generate import generate
from deploy.stages.learner_rank import starting_student
from deploy.stages.pretrain import pretrain_model
from deploy.stages.quality import _models
from deploy.stages.sample import fill, take_order
from deploy.stages.tokenize import tokenize
from rollout.evaluation.metrics import image_seeds
from rollout.evaluation.one_pass import Passes, drawn
from rollout.sampler import sample


def losses(workspace):
    return [row["loss"] for row in rows_of(workspace)]


def state_of(path):
    return load_generator(path)[0].state_dict()


def test_a_run_trains_the_student_that_it_started_from_the_teacher(one_pass_run):
    config, workspace = one_pass_run
    before, after = starting_student(config, workspace), state_of(workspace.student)
    teacher, _ = load_backbone(workspace.teacher)
    assert torch.equal(before.layers[0].attention.wqkv.weight, _qkv(teacher))
    assert all(torch.isfinite(value).all() for value in after.values())
    moved = [n for n, v in before.state_dict().items() if not torch.equal(v, after[n])]
    assert set(before.state_dict()) - set(moved) == {"codebook_VD"}
    rows = rows_of(workspace)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all({"sequence_loss/teacher", "divergence/teacher"} <= row.keys() for row in rows)
    assert not any(key.startswith("lag") for row in rows for key in row)
    facts = json.loads(workspace.facts.read_text())
    assert (facts["steps"], facts["cause"]) == (4, None)
    assert not workspace.student_before.exists()


def _qkv(teacher):
    return teacher.layers[0].attention.wqkv.weight


def test_a_killed_run_goes_on_to_the_same_weights(one_pass_run, one_pass_copy):
    config, workspace = one_pass_copy
    snapshots = Snapshots(workspace.snapshots)
    assert snapshots.steps() == [2, 4]
    facts, said = go((config, workspace), resume_from=2)
    assert (facts["resumed"], facts["steps"]) == (True, 4)
    assert "steps 3 to 4 are thrown away" in said
    assert losses(workspace) == losses(one_pass_run[1])
    found, wanted = state_of(workspace.student), state_of(one_pass_run[1].student)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


@pytest.mark.ray
def test_ray_and_one_process_learn_the_same_to_the_bit(
    ray_cluster, one_pass_run, one_pass_copy, quiet
):
    facts = distill(*one_pass_copy, quiet, local=False, restart=True)
    assert (facts["steps"], facts["cause"], facts["deaths"]) == (4, None, {})
    assert losses(one_pass_copy[1]) == losses(one_pass_run[1])


def test_pairs_can_be_made_while_the_learner_trains(prepared, tmp_path, one_pass_run):
    """The teacher is in the workers then, and nothing is read."""
    online = ("contexts.sources.teacher.source=online", "learner.steps=2")
    run = open_pairs(prepared, tmp_path / "run", *online)
    facts, _ = go(run)
    assert facts["steps"] == 2
    assert losses(run[1]) != losses(one_pass_run[1])[:2]


def test_the_images_of_a_row_are_compared_by_the_runs_classifier(prepared, tmp_path, one_pass_run):
    """Which is trained where there is none yet."""
    run = distilled(prepared, tmp_path / "run", "objective.distance=features", "learner.steps=2")
    assert run[1].classifier.exists()
    assert losses(run[1]) != losses(one_pass_run[1])[:2]
    assert_it_goes_on_by_the_same_classifier_alone(*run)


def assert_it_goes_on_by_the_same_classifier_alone(config, workspace):
    """Which counts only where a loss looks through it, and not in snapshots of before it did."""

    def differing(**classifier):
        settings = config.evaluate.classifier.model_copy(update=classifier)
        evaluate = config.evaluate.model_copy(update={"classifier": settings})
        return config.model_copy(update={"evaluate": evaluate}), workspace

    with pytest.raises(InputError, match=r"another run: evaluate.classifier.steps was 20, is 30;"):
        go(differing(steps=30), resume=True)
    assert go(differing(dtype="float32"), resume=True)[0]["steps"] == 2
    vectors = config.objective.model_copy(update={"distance": "vectors"})
    data = load_tokens(workspace.train_tokens)
    plain, other = (
        identify(run.model_copy(update={"objective": vectors}), workspace, data, None)
        for run in (config, differing(steps=30)[0])
    )
    assert plain == other
    now = identify(config, workspace, data, None)
    before = {key: of for key, of in now.fields.items() if not key.startswith("evaluate")}
    assert not list(now.differences(now.as_dict() | {"fields": before}))


def test_the_report_has_the_student_in_all_steps_that_are_asked_for(one_pass_copy, quiet):
    config, workspace = one_pass_copy
    both = write_report(config, workspace, quiet)
    students = {"student_after", "student_ema", "student_after_2_steps", "student_ema_2_steps"}
    assert set(both["fid"]) == {"teacher", *students}
    assert both["fid"]["student_ema"] != both["fid"]["student_ema_2_steps"]
    assert both["weights"]["student_ema"] == both["weights"]["student_ema_2_steps"]
    assert all(0 < spent < 1000 for spent in both["milliseconds_per_image"].values())
    second = config.evaluate.model_copy(update={"steps": (2,)})
    twice = write_report(config.model_copy(update={"evaluate": second}), workspace, quiet)
    assert set(twice["fid"]) == {"teacher", "student_after", "student_ema"}
    assert twice["fid"]["student_ema"] == both["fid"]["student_ema_2_steps"]
    assert "ms per image" in (workspace.root / "report.md").read_text()
    assert Image.open(workspace.root / "samples.png").size[0] > 0


def test_the_teacher_draws_between_two_passes(one_pass_copy):
    """Slots before and after it are the student's of the same noise."""
    config, workspace = one_pass_copy
    student, tokenizer = load_for_sampling(workspace.model(config, "student"), workspace, "cpu")
    passes = teacher_between(config, workspace, (3, 5), "cpu")
    label_B, seeds = torch.tensor([2, 8]), (4, 9)
    vector_BLD = drawn(student, label_B, seeds, passes)
    noise_BLD, codes = gaussian(seeds, 16, 4), tokenizer.codebook_VD
    with torch.no_grad():
        first = nearest(student.jump(label_B, noise_BLD, 0).vector_BLD[:, :2], codes)
        given_BL = F.pad(first, (0, 14))
        teacher = workspace.model(config, "teacher").load()
        wanted = sample(
            teacher,
            label_B,
            seeds,
            config.evaluate.sampling,
            cell_BL=given_BL,
            prefix_B=torch.tensor([2, 2]),
        )
        code_BnD = codes[wanted.cell_BL[:, :4]]
        rest = torch.cat([code_BnD, noise_BLD[:, 4:]], 1)
        assert torch.equal(vector_BLD, student.jump(label_B, rest, 4).vector_BLD)
    evaluate = config.evaluate.model_copy(update={"inserted": (3, 5), "steps": (1,)})
    changed = config.model_copy(update={"evaluate": evaluate})
    drawn_of = ("after", "after_inserted", "ema", "ema_inserted")
    assert list(_models(changed, workspace)) == ["teacher", *(f"student_{n}" for n in drawn_of)]


def test_images_are_the_decoders_of_the_students_vectors(one_pass_run):
    """Of the noise of the image's seed, with any batch."""
    config, workspace = one_pass_run
    model, tokenizer = load_for_sampling(workspace.model(config, "student"), workspace, "cpu")
    label_N = torch.tensor([0, 3, 7])
    noise_BLD = gaussian(image_seeds(5, 3), 16, 4)
    with torch.no_grad():
        vector_BLD = model.steps(label_N, noise_BLD, (1, 5)).vector_BLD
        image_BCHW = tokenizer.image_of(vector_BLD)
    wanted = ((image_BCHW + 1) * 127.5).round().clamp(0, 255).byte()
    for size in (1, 2, 3):
        drawn = draw_batches(
            model,
            tokenizer,
            label_N,
            sampling=config.evaluate.sampling,
            batch_size=size,
            seed=5,
            passes=Passes(2),
        )
        assert torch.equal(torch.cat(list(drawn)), wanted)


def test_sheets_and_grids_are_drawn(one_pass_copy, quiet, tmp_path):
    config, workspace = one_pass_copy
    order = take_order(
        config,
        workspace,
        "student_ema",
        output=tmp_path / "grid.png",
        classes="1,4",
        per_class=3,
        seed=None,
    )
    fill(order, config, workspace, quiet)
    assert Image.open(tmp_path / "grid.png").size[0] > 0
    classes = dict(enumerate("0123456789"))
    grids = draw_grids(config, workspace, classes, 4, quiet)
    assert [(grid.tag, grid.step) for grid in grids] == [
        ("samples/teacher", 0),
        ("samples/student", 4),
        ("samples/student_ema", 4),
    ]


def test_the_exported_file_is_the_released_ones_with_both_sets_of_weights(one_pass_copy, tmp_path):
    config, workspace = one_pass_copy
    path = export(config, workspace, name="student", layout="official", output=tmp_path / "dd.pt")
    code_VD = load_tokenizer(workspace.tokenizer).codebook_VD
    spec = read_header(workspace.train_tokens).spec
    for name, ema in (("student", False), ("student_ema", True)):
        released = load_released(path, config.models.student, spec, code_VD, ema=ema)
        wanted = state_of(getattr(workspace, name))
        assert all(torch.equal(v, wanted[n]) for n, v in released.state_dict().items())
    assert "dd1_llamagen" in (tmp_path / "dd.pt.md").read_text()
    flat = export(config, workspace, name="student", layout="safetensors", output=None)
    released = load_released(flat, config.models.student, spec, code_VD)
    assert torch.equal(released.head.weight, state_of(workspace.student)["output.weight"])


def test_a_run_can_start_from_a_released_file(one_pass_copy, tmp_path):
    """Whose average is the base student then, and is measured as such."""
    config, workspace = one_pass_copy
    path = export(config, workspace, name="student", layout="official", output=tmp_path / "dd.pt")
    weights = {"weights": path, "weights_ema": True, "steps": 1, "checkpoint_every": 0}
    changed = config.model_copy(update={"learner": config.learner.model_copy(update=weights)})
    student = starting_student(changed, workspace)
    wanted = state_of(workspace.student_ema)
    assert all(torch.equal(v, wanted[n]) for n, v in student.state_dict().items())
    assert go((changed, workspace), restart=True)[0]["steps"] == 1


def test_a_plan_has_no_teacher_server_and_no_weights_to_send(one_pass_run):
    plan = plan_run(*one_pass_run, timed=True)
    assert [need.role for need in plan.needs][:2] == ["rollout worker", "learner"]
    assert plan.facts["weights"].startswith("none are sent")
    assert "(not scored by the teacher)" in plan.facts["wire"]
    assert plan.facts["budget"].startswith("64 images (1.33 epochs), 1,024 tokens read")
    worker, learner = plan.needs[:2]
    assert 0 < worker.host_mb < learner.host_mb
    assert "missing" not in " ".join(plan.warnings)


@pytest.mark.parametrize(
    ("name", "steps", "rate", "positions", "split"),
    [
        ("dd1_llamagen_l", 164_062, 1e-4, (1, 81), 130),
        ("dd1_var_d16", 281_250, 2e-4, (1, 6), 55),
    ],
)
def test_the_shipped_configs_have_the_papers_settings(name, steps, rate, positions, split):
    """Epochs of 1.2 million pairs by 512: 70 and 120."""
    config, _ = open_run(Path(name), [])
    learner, student = config.learner, config.models.student
    assert (learner.steps, learner.global_batch_size) == (steps, 512)
    assert (learner.optimizer.learning_rate, learner.optimizer.ema) == (rate, 0.9999)
    assert (student.positions, student.split) == (positions, split)
    assert (config.objective.cross_entropy, config.rollout.class_dropout) == (0.1, 0)
    sampling = config.contexts.sources["teacher"].sampling
    assert (sampling.guidance.scale, sampling.flow.kind) == (2.0, "dpmpp_3m")


def test_a_student_of_var_learns_all_scales(tmp_path, quiet):
    """The order of its slots is no raster's, and its codes are the teacher's quantiser's."""
    quick = ("tokenizer.rounds=1", "tokenizer.fit_vectors=2000", "pretrain.teacher.steps=5")
    overrides = [*SMALL, *quick, "learner.steps=2"]
    run = open_run(Path("smoke_dd1_var"), overrides, tmp_path / "run")
    tokenize(*run, quiet, local=True)
    pretrain_model(*run, "teacher", quiet)
    generate(*run, quiet, local=True)
    assert go(run)[0]["steps"] == 2
    config, workspace = run
    student, tokenizer = load_for_sampling(workspace.model(config, "student"), workspace, "cpu")
    teacher = workspace.model(config, "teacher").load()
    assert natural_plan(2, student.spec).is_same(teacher.plan(range(2)))
    seeds, label_B = image_seeds(0, 3), torch.tensor([1, 2, 3])
    twice = drawn(student, label_B, seeds, Passes(2))
    with torch.no_grad():
        once = student.steps(label_B, gaussian(seeds, 30, 4), (1,))
        again = torch.cat([once.vector_BLD[:, :5], gaussian(seeds, 30, 4)[:, 5:]], 1)
        assert torch.equal(twice, student.jump(label_B, again, 5).vector_BLD)
    assert tokenizer.decode_vectors(twice).shape == (3, 1, 8, 8)
