"""Every model family through the whole pipeline on real digits, and out as an official file."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from building.launchers import groups

from common.artifacts.backbone_file import load_backbone
from common.config.plugins import kinds
from common.files.official import Checkpoint
from common.files.tensors import state_digest
from deploy.run_folder.opening import open_run
from deploy.stages.distill import distill
from deploy.stages.draw import draw_batches, load_for_sampling
from deploy.stages.export import export
from deploy.stages.pretrain import pretrain_model
from deploy.stages.tokenize import tokenize
from rollout.sampler import SamplingConfig

CONFIGS = {"llamagen": "smoke", "var": "smoke_var", "arpg": "smoke_arpg"}
ALL_SOURCES = [
    "contexts.sources.teacher={min_prefix=0.25,max_prefix=0.75,sampling={guidance=1.5}}",
    "contexts.sources.student.align=row",
]
"""Data, student and teacher, who samples in the workers as well."""


def test_every_family_has_a_smoke_run():
    assert sorted(CONFIGS) == kinds("common.models.backbones")


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def finished(request, tmp_path_factory, tiny_overrides, quiet):
    """A tiny run of the family, distilled in one process with ordered leases."""
    root = tmp_path_factory.mktemp(request.param)
    overrides = [*tiny_overrides, "learner.ordered=true", "teacher.guidance=1.5"]
    if request.param == "llamagen":
        overrides += ALL_SOURCES
    config, workspace = open_run(Path(CONFIGS[request.param]), overrides, root)
    tokenize(config, workspace, quiet, local=True)
    pretrain_model(config, workspace, "teacher", quiet)
    pretrain_model(config, workspace, "student", quiet)
    distill(config, workspace, quiet, local=True)
    return config, workspace


def losses(workspace):
    lines = (workspace.root / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.ray
def test_ray_and_one_process_learn_the_same_to_the_bit(finished, ray_cluster, quiet, tmp_path):
    """One family with versions in files, the others with versions in the object store."""
    config, workspace = finished
    alone, student = losses(workspace), state_digest(load_backbone(workspace.student)[0])
    before, _ = load_backbone(workspace.student_before)
    reserved = groups()
    if config.models.student.kind == "arpg":
        rollout = config.rollout.model_copy(update={"weights_folder": tmp_path})
        config = config.model_copy(update={"rollout": rollout})
    facts = distill(config, workspace, quiet, local=False, restart=True)
    assert not [*tmp_path.iterdir()], "files of versions go with the run"
    assert groups() == reserved, "a run leaves no reservation"
    assert facts["steps"] == config.learner.steps
    assert losses(workspace) == alone
    assert len(set(alone)) > 1
    after, _ = load_backbone(workspace.student)
    assert state_digest(after) == student
    assert not torch.equal(before.head.weight, after.head.weight)


@pytest.mark.parametrize("layout", ["official", "safetensors"])
def test_an_exported_student_comes_back_to_the_bit(finished, layout):
    config, workspace = finished
    path = export(config, workspace, name="student", layout=layout, output=None)
    file = workspace.model(config, "student")
    ours, theirs = file.load().state_dict(), replace(file, path=path).load().state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    top = torch.load(path, weights_only=True) if layout == "official" else {}
    expected = file.load().official.top_level
    assert layout == "safetensors" or expected is None or list(top) == [expected]
    if config.models.student.kind == "var":
        names = set(Checkpoint(path).entries)
        assert {"lvl_1L", "attn_bias_for_masking", "blocks.0.attn.zero_k_bias"} <= names
        assert not any(name.startswith("quantizer") for name in names)


def test_the_card_says_where_the_weights_come_from(finished):
    config, workspace = finished
    path = export(config, workspace, name="student_ema", layout="official", output=None)
    card = path.with_name(f"{path.name}.md").read_text()
    for fact in (
        f"{config.models.student.kind}, ",
        "teacher.safetensors, sha256 ",
        "kind varkd",
        f"{config.learner.steps} of {config.learner.steps}, 16 images each",
        path.name,
        "Not evaluated",
    ):
        assert fact in card, fact


def test_an_official_teacher_and_student_can_be_distilled(finished, quiet, tmp_path):
    """What a user with published files does: weights by path, sizes by config."""
    config, workspace = finished
    teacher, student = (
        export(config, workspace, name=name, layout="official", output=tmp_path / f"{name}.pt")
        for name in ("teacher", "student_before")
    )
    alone = losses(workspace)
    changed = config.model_copy(
        update={
            "teacher": config.teacher.model_copy(update={"weights": teacher}),
            "learner": config.learner.model_copy(update={"weights": student}),
        }
    )
    distill(changed, workspace, quiet, local=True, restart=True)
    assert losses(workspace) == alone


def test_guided_samples_of_a_student_are_images(finished):
    config, workspace = finished
    file = workspace.model(config, "student")
    backbone, tokenizer = load_for_sampling(file, workspace, "cpu")
    sampling = SamplingConfig.model_validate({"guidance": 1.5, "top_k": 10, "top_p": 0.9})
    pixels, alone = (
        torch.cat(
            list(
                draw_batches(
                    backbone,
                    tokenizer,
                    torch.tensor([0, 1, 2]),
                    sampling=sampling,
                    batch_size=size,
                    seed=0,
                )
            )
        )
        for size in (2, 3)
    )
    assert (pixels.shape, pixels.dtype) == ((3, 1, 8, 8), torch.uint8)
    assert torch.equal(pixels, alone)
