"""Distilled Decoding 2 through the pipeline, on real digits: the first stage, the second from its
student, what reads the generator afterwards, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from building.runs import go, rows_of, tree
from building.two_stages import first_done, open_second, open_stage, var_done

from common.artifacts.generator_file import load_generator, save_generator
from common.errors import InputError
from common.files.snapshots import Snapshots
from common.models.few_steps import nearest
from common.models.generator import gaussian
from deploy.planning.memory import blank_batch
from deploy.planning.plan import plan_run
from deploy.run_folder.opening import open_run
from deploy.run_folder.shipped import first_stage, smoke_config
from deploy.stages.draw import load_for_sampling, passes_of
from deploy.stages.evaluate import write_report
from deploy.stages.export import export
from deploy.stages.learner_rank import starting_student
from deploy.stages.sample import fill, take_order
from deploy.stages.second_stage import second_stage
from rollout.evaluation.metrics import image_seeds
from rollout.evaluation.one_pass import Passes, drawn
from teacher_server.teacher import Teacher, guided_features


@pytest.fixture(scope="module")
def first(prepared, tmp_path_factory):
    return first_done(prepared, tmp_path_factory.mktemp("first") / "run")


@pytest.fixture(scope="module")
def second(prepared, tmp_path_factory, first):
    run = open_second(prepared, tmp_path_factory.mktemp("second") / "run", first)
    go(run)
    return run


def state_of(path):
    return load_generator(path)[0].state_dict()


def differing(one, other):
    return {name for name, value in one.items() if not torch.equal(value, other[name])}


def test_the_first_stage_starts_from_the_teacher(first):
    config, workspace = first
    before, after = starting_student(config, workspace).state_dict(), state_of(workspace.student)
    assert "network.layers.0.attention.wqkv.weight" in differing(before, after)
    rows = rows_of(workspace)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["loss"] == pytest.approx(row["sequence_loss/teacher"]) for row in rows)
    assert not any(key.startswith(("lag", "divergence")) for row in rows for key in row)


def test_the_second_stage_starts_from_the_firsts_average_and_takes_turns(first, second):
    config, workspace = second
    before = starting_student(config, workspace).state_dict()
    assert not differing(before, state_of(first[1].student_ema))
    rows = rows_of(workspace)
    assert ["loss" in row for row in rows] == [False, False, True] * 2
    assert [row["version"] for row in rows] == [0, 0, 3, 3, 3, 6]
    assert [row["generator/steps"] for row in rows] == [0, 0, 1, 1, 1, 2]
    assert [row["lag_max"] for row in rows if "loss" in row] == [0, 0]
    facts = json.loads(workspace.facts.read_text())
    assert (facts["steps"], facts["published"], facts["cause"]) == (6, 3, None)
    student = state_of(workspace.student)
    assert differing(before, student)
    assert "network.tok_embeddings.codes.code_VD" not in differing(before, student)


def test_a_run_killed_between_the_turns_goes_on_to_the_same_weights(
    prepared, first, second, tmp_path
):
    """After both guidance steps and before the generator's."""
    shutil.copytree(second[1].root, tmp_path / "run", symlinks=True)
    run = open_second(prepared, tmp_path / "run", first)
    workspace = run[1]
    assert Snapshots(workspace.snapshots).steps() == [5, 6]
    facts, _ = go(run, resume_from=5)
    assert (facts["resumed"], facts["steps"]) == (True, 6)
    numbers = ("loss", "guidance/loss", "grad_norm", "guidance/grad_norm")
    found, wanted = (
        [[row.get(name) for name in numbers] for row in rows_of(w)] for w in (workspace, second[1])
    )
    assert found == wanted
    for name in ("student", "student_ema"):
        paths = [getattr(w, name) for w in (workspace, second[1])]
        assert not differing(*map(state_of, paths))


@torch.no_grad()
def test_an_image_is_one_pass_or_one_and_the_teachers_last_steps(second):
    config, workspace = second
    student, tokenizer = load_for_sampling(workspace.model(config, "student"), workspace, "cpu")
    teacher = workspace.model(config, "teacher").load()
    seeds, label_B = image_seeds(0, 3), torch.tensor([1, 2, 3])
    noise_BLD = gaussian(seeds, 16, student.code_width)
    once_BLD = drawn(student, label_B, seeds, Passes())
    assert torch.equal(once_BLD, student(label_B, noise_BLD).vector_BLD)
    calls = []
    passes = passes_of(config, workspace, 4, "cpu")
    hook = passes.ending.teacher.head.register_forward_hook(lambda *_: calls.append(1))
    found_BLD = drawn(student, label_B, seeds, passes)
    hook.remove()
    assert len(calls) in (3, 6)  # the last three tokens; twice where guided in two passes
    assert torch.equal(found_BLD[:, :13], once_BLD[:, :13])
    token_BL = nearest(found_BLD, student.codebook_VD)
    assert torch.equal(found_BLD[:, 13:], student.codebook_VD[token_BL[:, 13:]])
    from rollout.inserted import inserted

    draws = inserted(teacher, label_B, seeds, config.evaluate.sampling)
    wanted_BL = draws(nearest(once_BLD[:, :13], student.codebook_VD), 16)
    assert torch.equal(token_BL, wanted_BL)
    assert tokenizer.decode_vectors(found_BLD).shape == (3, 1, 8, 8)


def test_what_is_evaluated_sampled_exported_and_planned(second, tmp_path, quiet, capsys):
    config, workspace = second
    report = write_report(config, workspace, quiet)
    names = {"student_before", "student_after", "student_ema"}
    names |= {f"{name}_3_steps" for name in names}
    assert set(report["fid"]) == {"teacher", *names}
    options = {"classes": "3", "per_class": 2, "seed": None}
    order = take_order(config, workspace, "student_ema", output=tmp_path / "s.png", **options)
    fill(order, config, workspace, quiet)
    assert (tmp_path / "s.png").exists()
    where = {"name": "student", "layout": "safetensors", "output": tmp_path / "x.safetensors"}
    path = export(config, workspace, **where)
    from safetensors.torch import load_file

    assert not differing(state_of(workspace.student), load_file(path))
    with pytest.raises(InputError, match="--layout official: nobody published a dd2_llamagen"):
        export(config, workspace, name="student", layout="official", output=None)
    plan = plan_run(config, workspace, timed=False)
    assert plan.facts["weights"].split(", ")[1] == "every 3 steps"
    assert [need.role for need in plan.needs][:3] == ["teacher server", "rollout worker", "learner"]
    assert not any("missing" in warning for warning in plan.warnings)


def test_a_learner_of_two_networks_is_planned_with_both(first, second):
    """Weights, moments, gradients and average of each: about twice as much as of one."""
    needs = [plan_run(*run, timed=False).needs for run in (first, second)]
    one, two = (next(n for n in need if n.role == "learner").host_mb for need in needs)
    assert two > one


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["learner.max_staleness=1"], "learner.max_staleness is 1 and publish_every 1; set them"),
        (["learner.dtype=bfloat16"], "learner.dtype is bfloat16, which rounds otherwise"),
        (["rollout.dtype=auto"], "rollout.dtype is auto, which rounds otherwise"),
        (["learner.parallel=fsdp"], "every rank needs both whole, but learner.parallel is fsdp"),
        (["contexts.sources.student.max_prefix=0.5"], "student.max_prefix is 0.5; set min_prefix"),
        (["contexts.sources.data.ratio=1"], "contexts.sources has data; have contexts.sources.st"),
        (["rollout.class_dropout=0.1"], "belong to their class, but rollout.class_dropout is 0.1"),
        (["teacher.prefix=vectors"], "teacher.prefix is vectors, but a llamagen reads codes"),
        (["evaluate.steps=17"], "evaluate.steps is 17, but a sequence has 16: beside its one pass"),
        (
            ["sample.inserted=[2,4]"],
            r"sample.inserted is \[2, 4\], but a dd2_llamagen cannot go on",
        ),
        (["models.student={kind='dd1_llamagen'}"], "trains a student of kind dd2_llamagen, dd2_va"),
        (["objective.times.lowest=0"], "objective.times.lowest"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_does_not_go_together_is_one_sentence(prepared, first, tmp_path, overrides, sentence):
    with pytest.raises(InputError, match=sentence) as refused:
        open_second(prepared, tmp_path / "run", first, *overrides)
    assert "\n" not in str(refused.value)


def test_the_second_stage_does_not_begin_with_nothing_or_with_a_teacher(prepared, first, tmp_path):
    """Ours or official; nor with a student that means other codes."""
    where = {"name": "teacher", "layout": "official", "output": tmp_path / "official.pt"}
    official = export(*first, **where)
    foreign, config = load_generator(first[1].student_ema)
    foreign.codebook_VD += 1
    save_generator(tmp_path / "foreign.safetensors", foreign, config)
    for weights, sentence in (
        (None, "begins with what a run of dd2_gts learned, but learner.weights is not set"),
        (prepared / "teacher.safetensors", "holds a backbone, expected a one-pass student"),
        (official, r"holds autoregressive weights \(llamagen\), but models.student is a dd2_llam"),
        (
            tmp_path / "foreign.safetensors",
            "the student's codebook .* is not that of the tokenizer",
        ),
    ):
        given = [f"learner.weights={weights}"] if weights else []
        run = open_stage(prepared, tmp_path / "run", "smoke_dd2", *given)
        before = tree(tmp_path)
        with pytest.raises(InputError, match=sentence):
            go(run)
        assert tree(tmp_path) == before


def test_the_smoke_run_has_two_configs_and_one_name(first, tmp_path):
    assert (smoke_config("dd2", "llamagen"), first_stage("smoke_dd2")) == (
        "smoke_dd2",
        "smoke_dd2_gts",
    )
    assert first_stage("smoke_dd1") is None
    config, workspace = open_run(Path("smoke_dd2"), [], tmp_path / "run")
    begun = second_stage(config, workspace, first[1])
    assert begun.learner.weights == first[1].student_ema
    assert workspace.teacher.samefile(first[1].teacher)
    assert not workspace.student.exists()


def test_the_shipped_configs_have_the_papers_settings():
    """Updates add up to the papers': 8,000 + 7,500 of the generator of VAR-d16."""
    for name, rows, rates, updates in (
        ("dd2_var_d16", 512, (2e-4, 2e-4), (15_500, 63_000)),
        ("dd2_llamagen_l", 1024, (1e-4, 2e-4), (12_000, 60_000)),
    ):
        config, _ = open_run(Path(name), [])
        objective, learner = config.objective, config.learner
        done = objective.turns().done(learner.steps)
        assert (done["generator"], done["guidance"]) == updates
        ours, its = learner.optimizer, objective.guidance.optimizer
        assert (ours.learning_rate, its.learning_rate, ours.ema) == (*rates, 0.9999)
        assert (ours.warmup, its.warmup, ours.betas, its.betas) == (
            8000,
            40_000,
            *2 * ((0.9, 0.95),),
        )
        assert (learner.global_batch_size, objective.guidance.steps) == (rows, 5)
        assert (objective.distance.rule, objective.distance.alpha) == ("sid", 1.0)
        assert (objective.position.first, objective.position.last) == (1.0, 1.0)
        assert config.teacher.guidance.scale == 2.0
    aligned = open_run(Path("dd2_var_d16"), [])[0].objective.alignment
    assert (aligned.after, aligned.steps, aligned.guidance_steps) == (8000, 8000, 2)
    for name, steps, rate in (
        ("dd2_var_d16_gts", 300_000, 2e-4),
        ("dd2_llamagen_l_gts", 100_000, 1e-4),
    ):
        config, _ = open_run(Path(name), [])
        assert (config.learner.steps, config.learner.optimizer.learning_rate) == (steps, rate)
        sampling = config.contexts.sources["teacher"].sampling
        assert config.objective.filters.model_dump() == {
            field: getattr(sampling, field) for field in type(config.objective.filters).model_fields
        }
        assert sampling.guidance == config.teacher.guidance


def test_a_generator_of_var_makes_all_scales_and_the_teacher_reads_its_vectors(tmp_path):
    config, workspace = run = var_done(tmp_path)
    assert [row["generator/steps"] for row in rows_of(workspace)] == [0, 0, 1, 1, 1, 2]
    student, tokenizer = load_for_sampling(workspace.model(config, "student"), workspace, "cpu")
    seeds, label_B = image_seeds(0, 3), torch.tensor([1, 2, 3])
    once_BLD = drawn(student, label_B, seeds, Passes())
    twice_BLD = drawn(student, label_B, seeds, passes_of(config, workspace, 2, "cpu"))
    assert torch.equal(once_BLD[:, :14], twice_BLD[:, :14])
    assert not torch.equal(once_BLD[:, 14:], twice_BLD[:, 14:])
    assert tokenizer.decode_vectors(once_BLD).shape == (3, 1, 8, 8)
    assert plan_run(*run, timed=False).facts["weights"].split(", ")[1] == "every 3 steps"
    file = workspace.model(config, "teacher")
    token_BL = nearest(once_BLD, student.codebook_VD)
    blank = blank_batch(student, ("student",) * 3, config.rollout.sampling)
    rows = replace(blank, label_B=label_B, token_BL=token_BL, vector_BLD=once_BLD)
    said = Teacher(config.teacher, file, coalesce=False).opinion(rows).signal["hidden"]
    guidance = config.teacher.guidance
    with torch.no_grad():
        wanted, of_codes = (
            guided_features(file.load(), rows, guidance, vectors=read) for read in (True, False)
        )
    assert torch.equal(said, wanted)
    assert not torch.allclose(said[:, 1:], of_codes[:, 1:], atol=1e-3)
