"""Where prefixes come from and who continues them: laws, the teacher's samples, whole runs."""

import json
from dataclasses import replace

import pytest
import torch

from common.checkpoint import load_backbone, pack, save_backbone
from common.errors import InputError
from common.ledger import Draws, Lease, Schedule
from common.model_file import ModelFile
from common.plugins import kinds, load_plugin
from common.tokens import load_tokens, read_header
from common.trajectory import from_arrow, to_arrow
from common.weights import Weights
from deploy.distill import distill
from deploy.generating import generate, load_generated
from deploy.meter import decoding_bytes
from deploy.sizing import Sizing, skeleton, state_bytes
from rollout.context import ContextsConfig, assign
from rollout.sampler import SamplingConfig, decode, noise
from rollout.worker import RolloutConfig, RolloutWorker

SCHEDULE = Schedule(steps=100, images_per_step=8, lease_size=8, max_lag=2, publish_every=1)
DATASET = "contexts.sources.teacher={source='dataset',sampling={guidance=1.5}}"


def mixture(coin="sample", **sources):
    return ContextsConfig.model_validate({"coin": coin, "sources": sources})


def assignment(contexts, indices, data, **more):
    draws = Draws(3, len(data))
    given = {"draws": draws, "schedule": SCHEDULE, "class_dropout": 0.1} | more
    return assign(contexts, indices, data=data, **given)


@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_aligned_prefixes_are_whole_rows_all_equally_likely(data, kind):
    spec = replace(data.spec, length=30, grid=(10, 3))
    law = load_plugin("rollout.contexts", kind).Config(lo=0.1, hi=0.7, align="row")
    draws = Draws(0, 10)
    found = [law.prefix(i, draws, spec=spec, step=0) for i in range(7000)]
    counts = torch.bincount(torch.tensor(found), minlength=31)
    assert set(counts.nonzero().flatten().tolist()) == set(range(3, 22, 3))
    assert (counts[3:22:3] - 1000).abs().max() < 100
    per_batch = law.model_copy(update={"per": "batch"})
    lengths = [per_batch.prefix(i, draws, spec=spec, step=i // 8) for i in range(800)]
    assert all(len(set(lengths[i : i + 8])) == 1 for i in range(0, 800, 8))
    assert len(set(lengths)) == 7
    with pytest.raises(InputError, match=r"none of the grid's 10 rows ends between lo 0\.41 and"):
        law.model_copy(update={"lo": 0.41, "hi": 0.49}).prefix(0, draws, spec=spec, step=0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["contexts.sources.student={align='row',lo=0.3,hi=0.4}"], "none of the grid's 4 rows"),
        (
            ["models.student={kind='arpg'}", "contexts.sources.student.align=row"],
            "but a arpg does not decode row by row",
        ),
        (["contexts.sources.student.per=step"], "should be 'sample' or 'batch'"),
        (["contexts.sources.teacher={source='dataset',hi=0.5}"], "holds whole samples"),
        (["objective.kind=minillm", "contexts.sources.teacher={}"], "samples of the teacher"),
        (["objective.kind=sampled_rkl", "contexts.sources.teacher={}"], "samples of the teacher"),
    ],
)
def test_impossible_sources_are_refused_with_the_config(run_in, overrides, message):
    with pytest.raises(InputError, match=message):
        run_in(*overrides)


def test_annealing_leads_from_data_alone_to_the_ratios(data):
    base = {"data": {"ratio": 1}, "student": {"ratio": 3}}
    for name, half in (("linear", 0.5), ("exponential", 200**-0.5), ("sigmoid", 0.5)):
        contexts = ContextsConfig.model_validate({"sources": base, "anneal": name})
        shares = [contexts.shares_at(t)["data"] for t in (0, 0.5, 1)]
        wanted = [1, half + (1 - half) / 4, 0.25]
        assert shares == pytest.approx(wanted, abs=0.005)
        assert sum(contexts.shares_at(0.3).values()) == pytest.approx(1)
    linear = ContextsConfig.model_validate({"sources": base, "anneal": "linear", "coin": "sample"})
    found = assignment(linear, range(800), data, schedule=replace(SCHEDULE, images_per_step=8))
    early, late = found.context[:200], found.context[-200:]
    assert early.count("data") > 150
    assert late.count("data") < 100
    with pytest.raises(ValueError, match=r"no sources\.data"):
        ContextsConfig.model_validate({"sources": {"student": {}}, "anneal": "linear"})


class Keep:
    """A weight store, a ledger and a teacher server that do nothing."""

    def __init__(self, student):
        self.bundle = Weights.of(0, pack(student, torch.float32))

    def newest(self, timeout):
        return 0

    def get(self, version, timeout):
        return self.bundle


@pytest.fixture
def sample(tiny, data, tmp_path):
    """Records of a worker with tiny models of a family, and the teacher."""

    def build(contexts, kind="llamagen", sampling=None, indices=range(8), generated=None):
        family = load_plugin("common.backbones", kind).Config.tiny()
        student, teacher = tiny(kind, 1), tiny(kind, 2)
        tokens = replace(data, spec=teacher.spec)
        if teacher.spec.length != data.spec.length:
            tokens = replace(tokens, token_NAL=data.token_NAL.repeat(1, 1, 3)[..., :14])
        path = tmp_path / f"{kind}.safetensors"
        save_backbone(path, teacher, family)
        file = ModelFile(path, "models.teacher", family, teacher.spec, path)
        keep = Keep(student)
        worker = RolloutWorker(
            RolloutConfig(batch_size=8, sampling=sampling or SamplingConfig()),
            contexts,
            family,
            name="w",
            schedule=SCHEDULE,
            draws=Draws(3, len(tokens)),
            data=tokens,
            teacher=keep,
            weights=keep,
            ledger=keep,
            teacher_file=file,
            generated=generated,
        )
        lease = Lease(0, indices.start, len(indices), 0, None, 1)
        return from_arrow(worker.sample(lease)), teacher, tokens

    return build


@pytest.mark.parametrize("kind", kinds("common.backbones"))
@pytest.mark.parametrize("lo", [0.0, 0.5])
def test_the_teachers_rows_are_its_own_decoding(sample, kind, lo):
    """Under the teacher's guidance and steps, whatever the student's; data keep the prefix."""
    steps = {"steps": 4} if kind == "arpg" else {}
    own = SamplingConfig.model_validate({"guidance": 2.0, "top_k": 9, "decoding": steps})
    contexts = mixture(teacher={"lo": lo, "hi": lo, "sampling": own.model_dump()})
    batch, teacher, tokens = sample(contexts, kind)
    draws = Draws(3, len(tokens))
    label_B, cell_BL = tokens.pick(range(8), draws, 0.1)
    seeds = [draws.noise_seed(i) for i in range(8)]
    plan = teacher.plan(seeds, own.decoding)
    given_BL = cell_BL.gather(1, plan.order_BL)
    wanted = decode(
        teacher,
        label_B,
        sampling=own,
        noise_BL=noise(seeds, tokens.spec.length),
        plan=plan,
        given_BL=given_BL,
        prefix_B=batch.prefix_B,
    )
    assert set(batch.context) == {"teacher"}
    assert torch.equal(batch.plan.order_BL, plan.order_BL)
    assert torch.equal(batch.token_BL, wanted.token_BL)
    torch.testing.assert_close(batch.logprob_BL, wanted.logprob_BL)
    k = int(batch.prefix_B[0])
    assert k == lo * tokens.spec.length
    assert torch.equal(batch.token_BL[:, :k], given_BL[:, :k])
    assert not torch.equal(batch.token_BL[:, k:], given_BL[:, k:])
    assert torch.equal(batch.label_B, label_B)


@pytest.mark.parametrize("kind", kinds("common.backbones"))
def test_a_mixed_lease_is_its_rows_one_by_one(sample, kind):
    third = {"ratio": 1, "lo": 0.25, "hi": 0.75}
    contexts = mixture(data={"ratio": 1}, student=third, teacher=third)
    batch, *_ = sample(contexts, kind)
    assert set(batch.context) == {"data", "student", "teacher"}
    for row in range(8):
        alone, *_ = sample(contexts, kind, indices=range(row, row + 1))
        assert alone.context[0] == batch.context[row]
        assert torch.equal(alone.token_BL[0], batch.token_BL[row])
        torch.testing.assert_close(alone.logprob_BL[0], batch.logprob_BL[row])


def test_only_the_students_rows_go_stale_and_count_as_rollouts(sample):
    third = {"ratio": 1, "lo": 0.25, "hi": 0.75}
    batch, *_ = sample(mixture(data={}, student=third, teacher=third))
    flags = torch.tensor([name == "student" for name in batch.context])
    versions = torch.where(flags, 7, 2)
    assert to_arrow(replace(batch, version_B=versions)).schema.metadata[b"oldest"] == b"7"
    assert torch.equal(batch.on_policy_B, flags)
    assert torch.equal(batch.rollout_BL, batch.suffix_BL & flags[:, None])
    others, *_ = sample(mixture(data={}, teacher=third))
    assert to_arrow(others).schema.metadata[b"oldest"] == b"-1"


@pytest.mark.parametrize("kind", kinds("learner.objectives"))
def test_every_objective_takes_teacher_rows_as_data_or_refuses_them(sample, kind):
    """A loss on what the teacher sampled and nowhere else, or a sentence."""
    third = {"ratio": 1, "lo": 0.25, "hi": 0.75}
    objective = load_plugin("learner.objectives", kind).Config()
    shares = {"data": 0.4, "student": 0.3, "teacher": 0.3}
    if "behaviour" in objective.columns:
        with pytest.raises(InputError, match=f"{kind} corrects by the probability"):
            objective.check(shares)
        return
    objective.check(shares)
    objective.check({"teacher": 1.0})
    batch, *_ = sample(mixture(data={}, student=third, teacher=third))
    support_BL = objective.support(batch)
    for row, context in enumerate(batch.context):
        wanted = {
            "data": torch.ones_like(support_BL[row]),
            "teacher": batch.suffix_BL[row],
            "student": batch.suffix_BL[row] & objective.uses_rollouts,
        }[context]
        assert torch.equal(support_BL[row], wanted), context


def test_the_gate_leaves_the_teachers_rows_open(sample):
    from learner.objectives import varkd
    from learner.ranks import Solo

    third = {"ratio": 1, "lo": 0.25, "hi": 0.75}
    batch, *_ = sample(mixture(data={}, student=third, teacher=third))
    entropy_BL = torch.full(batch.token_BL.shape, 1.0)
    entropy_BL[:, -1] = 3.15  # a confidence of 0.01 with 24 codes
    scored = batch.scored({"entropy": entropy_BL}, {})
    objective = varkd.Config.model_validate({"gate": {"tau": 0.1}})
    weighing = objective.weigh(scored, {}, Solo())
    off_BL = weighing.support_BL & ~batch.on_policy_B[:, None]
    assert (weighing.weight_BL[off_BL] == 1).all()
    assert (weighing.weight_BL[batch.rollout_BL] < 1).all()


def rows_of(workspace):
    return [json.loads(line) for line in (workspace.root / "metrics.jsonl").open()]


def parts_of(workspace):
    return sorted(workspace.root.glob("tokens/teacher.parts/*/part-*.parquet"))


@pytest.fixture
def own_tokens(run_in):
    """A run whose tokens folder is its own, so that the prepared one stays as it is."""

    def build(*overrides, name="run"):
        config, workspace = run_in(*overrides, name=name)
        folder = workspace.root / "tokens"
        if folder.is_symlink():
            target = folder.resolve()
            folder.unlink()
            folder.mkdir()
            for entry in target.iterdir():
                (folder / entry.name).symlink_to(entry)
        return config, workspace

    return build


def test_the_dataset_is_the_teachers_decoding_of_the_datas_labels(own_tokens, quiet):
    run = own_tokens(DATASET, "contexts.sources.teacher.sequences=20", "tokens.part_images=8")
    assert generate(*run, quiet, local=True) == {"sequences": 20, "fresh": True}
    config, workspace = run
    made, train = load_generated(*run), load_tokens(workspace.train_tokens)
    assert (len(made), made.spec, made.classes) == (20, train.spec, train.classes)
    draws = Draws(derive(config), len(train))
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


def derive(config):
    from common.ledger import derive_seed

    return derive_seed(config.seed, "generate")


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


def test_rows_of_the_dataset_are_whole_and_have_their_own_labels(sample, data):
    generated = replace(data, token_NAL=data.token_NAL[:5].flip(-1), label_N=data.label_N[:5])
    contexts = mixture(data={}, teacher={"source": "dataset"})
    batch, *_ = sample(contexts, generated=generated)
    draws = Draws(3, 5)
    rows = [row for row, name in enumerate(batch.context) if name == "teacher"]
    assert 0 < len(rows) < 8
    for row in rows:
        stored = draws.row(row)
        assert torch.equal(batch.token_BL[row], generated.token_NAL[stored, 0])
        assert int(batch.label_B[row]) in (int(generated.label_N[stored]), data.spec.null_class)
        assert batch.prefix_B[row] == 0, "so that every slot has a loss"
    assert (batch.logprob_BL == 0).all()


MIXED = (
    "contexts.sources.teacher={lo=0.25,hi=0.75,sampling={guidance=1.5}}",
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
    read = own_tokens(DATASET, "objective.kind=mle", "contexts.sources.data.ratio=0", name="read")
    generate(*read, quiet, local=True)
    assert distill(*read, quiet, local=True)["steps"] == 6
    assert any("divergence/teacher" in row for row in rows_of(read[1]))
    assert read_header(read[1].teacher_tokens).facts["sampling"]["guidance"]["scale"] == 1.5


@pytest.mark.ray
def test_ray_samples_the_same_dataset_and_the_same_run(ray_cluster, own_tokens, run_in, quiet):
    settings = (DATASET, "contexts.sources.teacher.sequences=20", "tokens.part_images=8")
    here, there = own_tokens(*settings, name="here"), own_tokens(*settings, name="there")
    generate(*here, quiet, local=True)
    generate(*there, quiet, local=False)
    assert here[1].teacher_tokens.read_bytes() == there[1].teacher_tokens.read_bytes()
    losses = []
    for name in ("local", "ray"):
        run = run_in(*MIXED, name=name)
        distill(*run, quiet, local=name == "local")
        losses.append([row["loss"] for row in rows_of(run[1])])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_worker_that_hosts_the_teacher_is_sized_with_it(run_in):
    spec = load_tokens((run := run_in())[1].train_tokens).spec
    hosting = run_in("contexts.sources.teacher={sampling={guidance=1.5}}")[0]
    teacher = skeleton(hosting.models.teacher, spec)
    assert decoding_bytes(run[0], teacher, "teacher") == 0
    free = "contexts.sources.student={lo=0,hi=0}"
    as_student = run_in(free, "rollout.sampling.guidance=1.5")[0]
    found = decoding_bytes(hosting, teacher, "teacher")
    assert found == pytest.approx(decoding_bytes(as_student, teacher), rel=0.02)
    (without, _), (with_it, _) = (Sizing(c, spec)._worker_mb(False) for c in (run[0], hosting))
    assert with_it - without > state_bytes(teacher) / 2**20
