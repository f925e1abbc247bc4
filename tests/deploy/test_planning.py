"""The dry run: sizes, places and refusals, for machines that are not here."""

import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from common.artifacts.backbone_file import save_backbone
from common.errors import InputError
from common.spec import SequenceSpec
from deploy.backend.bundles import Bundles
from deploy.main import main
from deploy.planning.hardware import Hardware
from deploy.planning.placement import place_actors
from deploy.planning.plan import plan_run
from deploy.planning.resources import Need
from deploy.run_folder.opening import open_run
from deploy.run_folder.shipped import CONFIGS
from deploy.stages.sample import how_to_draw

SHIPPED = sorted(path.stem for path in CONFIGS.glob("*.toml"))
PAIRS = {
    "llamagen_l_to_b": (342_910_976, 110_888_448),
    "llamagen_xl_to_l": (774_699_520, 342_910_976),
    "arpg_xxl_to_l": (1_302_449_664, 319_845_376),
    "var_d30_to_d16": (2_010_020_356, 310_283_520),
}
"""Published parameter counts of teacher and student (docs/backbones.md, "LlamaGen sizes")."""
ONE_PASS = {
    "dd1_llamagen_l": (342_910_976, 326_155_272, 70),
    "dd1_var_d16": (310_283_520, 328_165_664, 120),
}
"""Of teacher and student, and the paper's epochs (docs/one_step.md, "Students")."""


def dry_run(capsys, *arguments):
    """Exit code, output and errors of `varkd distill ... --dry-run`, in this process."""
    with pytest.raises(SystemExit) as caught:
        main(["distill", "--dry-run", *map(str, arguments)])
    out = capsys.readouterr()
    return caught.value.code, out.out, out.err


def small(kind="llamagen"):
    """Overrides for tests in which the size of the models does not matter."""
    return [f'models.{role}={{kind="{kind}", depth=2}}' for role in ("teacher", "student")]


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)  # relative paths in configs lead nowhere


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_is_planned_without_files_and_gpus(capsys, name):
    code, out, err = dry_run(capsys, name)
    assert (code, err) == (0, "")
    for role in ("rollout worker", "learner"):
        assert role in out
    asks_teacher = open_run(Path(name), [])[0].objective.is_scored
    assert ("teacher server" in out) == asks_teacher
    if name in PAIRS:
        teacher, student = PAIRS[name]
        assert f"teacher: {teacher:,} parameters" in out
        assert f"student: {student:,} parameters" in out
        assert "5,120,000 images (4.00 epochs)" in out
        assert "wire rate: not estimated" in out
        for missing in ("teacher.weights", "learner.weights", "tokenizer.weights", "images.train"):
            assert f"missing: {missing}" in out
        assert "shared memory" not in out, "cluster.object_store_mb is too small"
    if name in ONE_PASS:
        teacher, student, epochs = ONE_PASS[name]
        assert f"teacher: {teacher:,} parameters" in out
        assert f"student: {student:,} parameters" in out
        assert f"({epochs}.00 epochs)" in out
        assert "GPUs 0-7: learner x1" in out
    assert not list(Path.cwd().iterdir()), "a dry run writes nothing"


@pytest.mark.parametrize("name", PAIRS)
def test_the_pairs_have_the_papers_settings(name):
    config, _ = open_run(Path(name), [])
    learner, student = config.learner, config.contexts.sources["student"]
    assert (learner.steps, learner.global_batch_size) == (20_000, 256)
    assert learner.optimizer.learning_rate == 5e-5
    assert config.contexts.shares() == pytest.approx({"data": 0.9, "student": 0.1})
    assert (student.model_dump()["min_prefix"], student.model_dump()["max_prefix"]) == (0.25, 0.75)
    objective = config.objective.model_dump()
    assert (objective["gate"]["tau"], objective["relaxation"]["factor"]) == (0.1, 4)
    zipar = config.rollout.sampling.decoding.zipar
    assert (zipar.window if zipar else None) == (4 if name.startswith("llamagen") else None)
    assert config.rollout.class_dropout == 0.1
    assert how_to_draw(config) == config.evaluate.sampling


@pytest.mark.parametrize("name", PAIRS)
def test_the_commands_in_their_headers_are_accepted(capsys, name):
    models = small(open_run(Path(name), [])[0].models.student.kind)
    stage_1 = ["objective.kind=kd", "contexts.sources.student.ratio=0", "learner.steps=250000"]
    code, out, err = dry_run(capsys, name, *models, *stage_1)
    assert (code, err) == (0, "")
    assert "64,000,000 images (49.95 epochs)" in out
    assert "about 0 of them sampled by the student" in out
    own = ["tokens.kind=images", "tokens.paths=[]", "tokens.crops=ten_crop"]
    code, out, err = dry_run(capsys, name, *models, *own)
    assert (code, err) == (0, "")
    assert "x 10 variants" in out


def places(name, *overrides):
    """What is where, by node, and the busiest GPUs."""
    config, workspace = open_run(Path(name), [*small(), *overrides])
    return plan_run(config, workspace, timed=True).nodes


def test_one_node_shares_gpus_between_teachers_and_workers():
    (node,) = places("llamagen_l_to_b")
    assert node.actors == {"teacher server": 4, "rollout worker": 4, "learner": 4}
    for gpu in node.gpus[:4]:
        assert gpu.actors == {"teacher server": 1, "rollout worker": 1}
    for gpu in node.gpus[4:]:
        assert gpu.actors == {"learner": 1}


def test_four_nodes_are_used_differently_from_one():
    nodes = places(
        "llamagen_l_to_b",
        "cluster.nodes=4",
        "cluster.cpus=32",
        "learner.world_size=8",
        "teacher.replicas=12",
        "rollout.workers=12",
        "rollout.batch_size=32",
    )
    total = sum((node.actors for node in nodes), Counter())
    assert total == {"teacher server": 12, "rollout worker": 12, "learner": 8}
    assert [node.actors["teacher server"] for node in nodes] == [8, 4, 0, 0]
    ranks = [node.actors["learner"] for node in nodes]
    assert ranks[0] == 0
    assert sum(ranks) == 8


def test_what_comes_later_is_counted_as_far_as_there_is_room(capsys):
    more = ("rollout.max_workers=6", "teacher.max_replicas=7", "--max-minutes", "30")
    _, plan, _ = dry_run(capsys, "llamagen_l_to_b", *more, "rollout.gpus=0.2", "cluster.gpus=9")
    grown = "up to 6 rollout workers (rollout.max_workers): 2 more, each with 2 CPUs and 0.2 GPUs;"
    assert f"grows: {grown} up to 7 teacher replicas (teacher.max_replicas): 3 more" in plan
    assert "0.6 GPUs, of whom 1 will find room" in plan


def needs(*wanted):
    """A need of 1 MB for every (role, placed, count, cpus, gpus)."""
    return [
        Need(Bundles(role, *sizes, role, placed=placed), 1, 1, lower="x")
        for role, placed, *sizes in wanted
    ]


def fake(nodes, cpus, gpus):
    return Hardware(nodes, cpus, gpus, memory_mb=1e9, gpu_memory_mb=1e9, is_here=False)


def test_groups_fill_a_node_and_then_the_next_while_workers_spread():
    """16 CPUs and 4 GPUs a node. The group: 4 teachers and 2 scorers fill node 0 to 12 CPUs, its
    GPUs to 0.6 each. Workers go where the most of them fit: none on node 0 (0.4 GPUs are left), 8
    on the others, by turns. Ranks want whole GPUs, of which nodes 1 and 2 have two each."""
    wanted = needs(
        ("teacher", "together", 4, 2, 0.6),
        ("scorer", "together", 2, 2, 0),
        ("worker", "alone", 8, 1, 0.5),
        ("rank", "by Ray Train", 3, 4, 1),
    )
    nodes = place_actors(wanted, fake(3, 16, 4))
    assert [dict(node.actors) for node in nodes] == [
        {"teacher": 4, "scorer": 2},
        {"worker": 4, "rank": 2},
        {"worker": 4, "rank": 1},
    ]
    assert [gpu.free for gpu in nodes[1].gpus] == [0, 0, 0, 0]
    assert [round(node.parts_mb["worker"]) for node in nodes] == [0, 4, 4]


def test_shares_in_pieces_take_nothing_that_needs_a_whole_gpu():
    """4 x 0.4 GPUs are no GPU; the next node has four, and then there is none."""
    teachers = ("teacher", "together", 4, 1, 0.6)
    nodes = place_actors(needs(teachers, ("worker", "alone", 2, 2, 1)), fake(2, 8, 4))
    assert [dict(node.actors) for node in nodes] == [{"teacher": 4}, {"worker": 2}]
    with pytest.raises(InputError, match=r"worker 1 of 1 finds no room: .* the 1\.6 GPUs that"):
        place_actors(needs(teachers, ("worker", "alone", 1, 2, 1)), fake(1, 8, 4))


def test_several_gpus_are_whole_ones():
    wanted = ("rank", "by Ray Train", 3, 1, 2)
    (node,) = place_actors(needs(wanted), fake(1, 8, 6))
    assert [gpu.actors for gpu in node.gpus] == [{"rank": 1}] * 6
    with pytest.raises(InputError, match=r"rank 3 of 3 finds no room"):
        place_actors(needs(wanted), fake(1, 8, 5))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["learner.world_size=8", "rollout.batch_size=32"],
            "learner 5 of 8 finds no room: it reserves 4 CPUs and 1 GPUs",
        ),
        (["rollout.workers=9", "rollout.gpus=1"], "rollout worker 5 of 9 finds no room"),
        (["cluster.cpus=12"], "rollout worker 3 of 4 finds no room: it reserves 2 CPUs and 0.4"),
        (["teacher.replicas=9"], "teacher server 9 of 9 finds no room"),
        (["rollout.gpus=1.5"], "rollout worker reserves 1.5 GPUs"),
        (["cluster.gpus=0"], "learner.device is cuda, but a node has no GPUs"),
    ],
)
def test_what_ray_cannot_place_is_refused_with_what_to_lower(capsys, overrides, message):
    code, out, err = dry_run(capsys, "llamagen_l_to_b", *small(), *overrides)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1, "one sentence"
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("gpu_memory_gb=8", "learner x1 on GPU 4 of node 0 need about"),
        ("gpu_memory_gb=3", "teacher server x1, rollout worker x1 on GPU 0 of node 0 need about"),
        ("memory_gb=60", "the run needs about"),
    ],
)
def test_too_little_memory_is_refused_with_what_to_lower(capsys, limit, message):
    raster = "rollout.sampling.decoding={}"  # whose steps take less time to walk through
    code, out, err = dry_run(capsys, "llamagen_l_to_b", *small(), f"cluster.{limit}", raster)
    assert (code, out) == (2, "")
    assert "lower " in err
    assert message in err
    assert err.count("\n") == 1, "one sentence"
    assert "Traceback" not in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without GPUs")
def test_a_real_run_is_held_to_this_machine(capsys):
    for extra, message in (
        ([], "torch sees no CUDA device"),
        (
            [f"{role}.device=auto" for role in ("learner", "rollout", "teacher")],
            "reserve 8 GPUs, but this machine has 0",
        ),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["distill", "llamagen_l_to_b", *small(), *extra])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err


def test_a_cluster_of_which_nothing_is_known_is_not_judged(capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "198.51.100.1:6379")
    code, out, _ = dry_run(capsys, "smoke", "learner.gpus=4", "learner.device=cuda")
    assert code == 0
    assert "node 0" not in out


def test_files_that_are_there_must_be_the_right_ones(capsys, tiny):
    from common.models.backbones import llamagen

    spec = SequenceSpec(64, 16, (4, 4), 10)
    save_backbone(Path("student.safetensors"), tiny("llamagen", spec=spec), llamagen.Config.tiny())
    code, _, err = dry_run(capsys, "smoke", "learner.weights=student.safetensors")
    assert code == 2
    assert "student.safetensors holds a model with" in err


def test_a_gpu_role_that_reserves_none_is_warned_of(capsys):
    code, out, _ = dry_run(capsys, "llamagen_l_to_b", *small(), "rollout.gpus=0")
    assert code == 0
    assert "rollout worker computes on a GPU but reserves none" in out


def test_a_group_sees_one_image_of_the_data(capsys):
    _, out, _ = dry_run(capsys, "llamagen_l_to_b", *small(), "rollout.group.size=4")
    assert "5,120,000 images of 1,280,000 conditions (1.00 epochs)" in out


def test_unknown_classes_and_small_shared_memory_are_said(capsys):
    missing = ("images.train=nowhere", "rollout.weights_folder=/nowhere")
    code, out, _ = dry_run(capsys, "smoke", "images.kind=folder", *missing)
    assert code == 0
    assert "set images.classes" in out
    assert "missing: rollout.weights_folder /nowhere" in out
    assert re.search(
        r"MB per version and worker, .* as files in /nowhere: [\d.]+ MB of its disk", out
    )
    code, out, _ = dry_run(capsys, "llamagen_l_to_b", *small(), "cluster.object_store_mb=512")
    assert "cluster.object_store_mb is 512" in out
