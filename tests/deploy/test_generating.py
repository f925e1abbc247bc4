"""The teacher's own token dataset, and whole runs with the teacher's samples."""

import json

import pytest
import torch

from common.artifacts.backbone_file import load_backbone, save_backbone
from common.data.tokens import load_tokens, read_header
from common.errors import InputError
from common.randomness import Draws, derive_seed
from deploy.planning.resources import Sizing, skeleton, state_bytes
from deploy.planning.sampling_memory import decoding_bytes
from deploy.stages.distill import distill
from deploy.stages.generate import generate, load_generated
from rollout.sampler import SamplingConfig, decode, noise

DATASET = "contexts.sources.teacher={source='dataset',sampling={guidance=1.5}}"


def rows_of(workspace):
    return [json.loads(line) for line in (workspace.root / "metrics.jsonl").open()]


def parts_of(workspace):
    return sorted(workspace.root.glob("tokens/teacher.parts/*/part-*.parquet"))


def test_the_dataset_is_the_teachers_decoding_of_the_datas_labels(own_tokens, quiet):
    run = own_tokens(DATASET, "contexts.sources.teacher.sequences=20", "tokens.part_images=8")
    assert generate(*run, quiet, local=True) == {"sequences": 20, "fresh": True}
    config, workspace = run
    made, train = load_generated(*run), load_tokens(workspace.train_tokens)
    assert (len(made), made.spec, made.classes) == (20, train.spec, train.classes)
    draws = Draws(derive_seed(config.seed, "generate"), len(train))
    assert torch.equal(made.label_N, train.label_N[[draws.row(i) for i in range(20)]])
    teacher, _ = load_backbone(workspace.teacher)
    seeds = [draws.noise_seed(i) for i in range(20)]
    wanted = decode(
        teacher,
        made.label_N,
        sampling=SamplingConfig(guidance=1.5),
        noise_BL=noise(seeds, 16),
        plan=teacher.plan(seeds),
    )
    assert torch.equal(made.token_NAL[:, 0].long(), wanted.token_BL)
    assert not parts_of(workspace)
    written = workspace.teacher_tokens.stat().st_mtime_ns
    assert not generate(*run, quiet, local=True)["fresh"]
    assert workspace.teacher_tokens.stat().st_mtime_ns == written


def test_generation_goes_on_after_its_finished_parts(own_tokens, quiet):
    settings = (DATASET, "contexts.sources.teacher.sequences=20", "tokens.part_images=8")
    whole, cut = own_tokens(*settings, name="whole"), own_tokens(*settings, name="cut")
    generate(*whole, quiet, local=True)
    workspace = cut[1]
    workspace.teacher_tokens.mkdir()  # nothing can be put there: it ends after its parts
    with pytest.raises(InputError, match="could not be written"):
        generate(*cut, quiet, local=True)
    workspace.teacher_tokens.rmdir()
    parts_of(workspace)[1].unlink()
    before = {path: path.stat().st_mtime_ns for path in parts_of(workspace)}
    workspace.teacher_tokens.mkdir()
    with pytest.raises(InputError, match="could not be written"):
        generate(*cut, quiet, local=True)
    after = {path: path.stat().st_mtime_ns for path in parts_of(workspace)}
    assert len(after) == 3
    assert before.items() < after.items()
    workspace.teacher_tokens.rmdir()
    generate(*cut, quiet, local=True)
    assert workspace.teacher_tokens.read_bytes() == whole[1].teacher_tokens.read_bytes()


def test_a_dataset_of_another_teacher_or_sampling_is_refused(own_tokens, quiet):
    settings = (DATASET, "contexts.sources.teacher.sequences=8")
    with pytest.raises(InputError, match="make it with `varkd generate`"):
        load_generated(*own_tokens(*settings))
    with pytest.raises(InputError, match="no dataset of the teacher's sequences is read"):
        generate(*own_tokens(), quiet, local=True)
    config, workspace = own_tokens(*settings)
    generate(config, workspace, quiet, local=True)
    hotter = own_tokens(*settings, "contexts.sources.teacher.sampling.temperature=2")
    with pytest.raises(InputError, match="was made with sampling"):
        load_generated(*hotter)
    more = own_tokens(*settings, "contexts.sources.teacher.sequences=9")
    with pytest.raises(InputError, match="with sequences 8, but the run has sequences 9"):
        load_generated(*more)
    teacher, architecture = load_backbone(workspace.teacher)
    workspace.teacher.unlink()
    save_backbone(workspace.teacher, teacher, architecture, note="other metadata")
    assert load_generated(config, workspace) is not None, "the same weights"
    next(teacher.parameters()).data.add_(1e-3)
    save_backbone(workspace.teacher, teacher, architecture)
    with pytest.raises(InputError, match=r"was made with teacher .* `varkd generate`"):
        distill(config, workspace, quiet, local=True)


MIXED = (
    "contexts.sources.teacher={min_prefix=0.25,max_prefix=0.75,sampling={guidance=1.5}}",
    "contexts.sources.student.align=row",
    "learner.ordered=true",
)


def test_a_run_with_all_three_sources_learns_from_each(run_in, own_tokens, quiet):
    facts = distill(*(run := run_in(*MIXED)), quiet, local=True)
    rows = rows_of(run[1])
    assert facts["steps"] == 6
    for context in ("data", "student", "teacher"):
        assert any(f"divergence/{context}" in row for row in rows), context
    assert not any("survival/teacher" in row for row in rows)
    changed = ("objective.kind=mle", "contexts.sources.data.ratio=0")
    read = own_tokens(DATASET, "contexts.sources.teacher.sequences=40", *changed, name="read")
    generate(*read, quiet, local=True)
    assert distill(*read, quiet, local=True)["steps"] == 6
    assert any("divergence/teacher" in row for row in rows_of(read[1]))
    assert read_header(read[1].teacher_tokens).facts["sampling"]["guidance"]["scale"] == 1.5


@pytest.mark.ray
def test_ray_samples_the_same_dataset(ray_cluster, own_tokens, quiet):
    """A run with the teacher's own samples is in tests/ray/test_families.py."""
    settings = (DATASET, "contexts.sources.teacher.sequences=20", "tokens.part_images=8")
    here, there = own_tokens(*settings, name="here"), own_tokens(*settings, name="there")
    generate(*here, quiet, local=True)
    generate(*there, quiet, local=False)
    assert here[1].teacher_tokens.read_bytes() == there[1].teacher_tokens.read_bytes()


def test_a_worker_that_hosts_the_teacher_is_sized_with_it(run_in):
    spec = load_tokens((run := run_in())[1].train_tokens).spec
    hosting = run_in("contexts.sources.teacher={sampling={guidance=1.5}}")[0]
    teacher = skeleton(hosting.models.teacher, spec)
    assert decoding_bytes(run[0], teacher, "teacher") == 0
    free = "contexts.sources.student={min_prefix=0,max_prefix=0}"
    as_student = run_in(free, "rollout.sampling.guidance=1.5")[0]
    found = decoding_bytes(hosting, teacher, "teacher")
    assert found == pytest.approx(decoding_bytes(as_student, teacher), rel=0.02)
    (without, _), (with_it, _) = (Sizing(c, spec)._worker_mb(False) for c in (run[0], hosting))
    assert with_it - without > state_bytes(teacher) / 2**20
