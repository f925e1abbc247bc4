"""Where prefixes come from and who continues them: laws, the teacher's rows, refusals."""

from dataclasses import replace

import pytest
import torch
from building.objectives import OF_BACKBONES, built
from building.samplers import Unchanging, tokens_of

from common.artifacts.backbone_file import save_backbone
from common.artifacts.model_file import ModelFile
from common.config.plugins import kinds, load_plugin
from common.errors import InputError
from common.exchange.schedule import Lease, Schedule
from common.exchange.trajectory import from_arrow, to_arrow
from common.randomness import Draws
from rollout.config import RolloutConfig
from rollout.context import ContextsConfig, assign
from rollout.model_draft import Draft
from rollout.prefix_sampler import PrefixSampler
from rollout.sampler import SamplingConfig, decode, noise
from rollout.sampler import sample as sample_rows
from rollout.worker import RolloutWorker

SCHEDULE = Schedule(steps=100, global_batch_size=8, lease_size=8, max_staleness=2, publish_every=1)


def mixture(mix_per="sample", **sources):
    return ContextsConfig.model_validate({"mix_per": mix_per, "sources": sources})


def assignment(contexts, indices, data, **more):
    draws = Draws(3, len(data))
    given = {"draws": draws, "schedule": SCHEDULE, "class_dropout": 0.1}
    given |= {"sampling": SamplingConfig()} | more
    return assign(contexts, indices, data=data, **given)


@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_aligned_prefixes_are_whole_rows_all_equally_likely(data, kind):
    spec = replace(data.spec, length=30, grid=(10, 3))
    law = load_plugin("rollout.contexts", kind).Config(min_prefix=0.1, max_prefix=0.7, align="row")
    draws = Draws(0, 10)
    found = [law.prefix(i, draws, spec=spec, step=0) for i in range(7000)]
    counts = torch.bincount(torch.tensor(found), minlength=31)
    assert set(counts.nonzero().flatten().tolist()) == set(range(3, 22, 3))
    assert (counts[3:22:3] - 1000).abs().max() < 100
    per_batch = law.model_copy(update={"prefix_per": "batch"})
    lengths = [per_batch.prefix(i, draws, spec=spec, step=i // 8) for i in range(800)]
    assert all(len(set(lengths[i : i + 8])) == 1 for i in range(0, 800, 8))
    assert len(set(lengths)) == 7
    narrow = law.model_copy(update={"min_prefix": 0.41, "max_prefix": 0.49})
    with pytest.raises(
        InputError, match=r"none of the grid's 10 rows ends between min_prefix 0\.41 and"
    ):
        narrow.prefix(0, draws, spec=spec, step=0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["contexts.sources.student={align='row',min_prefix=0.3,max_prefix=0.4}"],
            "none of the grid's 4 rows",
        ),
        (
            ["models.student={kind='arpg'}", "contexts.sources.student.align=row"],
            "but a arpg does not decode row by row",
        ),
        (["contexts.sources.student.prefix_per=step"], "should be 'sample' or 'batch'"),
        (["contexts.sources.teacher={source='dataset',max_prefix=0.5}"], "holds whole samples"),
        (["contexts.sources.teacher={source='dataset',draft_tokens=2}"], "set generate.draft"),
        (
            ["contexts.sources.teacher={draft_tokens=2,sampling.decoding.sjd.window=4}"],
            "sampling has decoding.sjd, which decides itself",
        ),
        (
            ["models.student={kind='arpg'}", "contexts.sources.teacher={draft_tokens=2}"],
            "models.student.kind is arpg, which does not decode slot by slot",
        ),
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
    linear = ContextsConfig.model_validate(
        {"sources": base, "anneal": "linear", "mix_per": "sample"}
    )
    found = assignment(linear, range(800), data, schedule=replace(SCHEDULE, global_batch_size=8))
    early, late = found.context[:200], found.context[-200:]
    assert early.count("data") > 150
    assert late.count("data") < 100
    with pytest.raises(ValueError, match=r"no sources\.data"):
        ContextsConfig.model_validate({"sources": {"student": {}}, "anneal": "linear"})


@pytest.fixture
def sample(tiny, data, tmp_path):
    """Records of a worker with tiny models of a family, and the teacher."""

    def build(contexts, kind="llamagen", sampling=None, indices=range(8), generated=None):
        family = load_plugin("common.models.backbones", kind).Config.tiny()
        student, teacher = tiny(kind, 1), tiny(kind, 2)
        tokens = tokens_of(teacher.spec, data)
        path = tmp_path / f"{kind}.safetensors"
        save_backbone(path, teacher, family)
        file = ModelFile(path, "models.teacher", family, teacher.spec, path)
        keep = Unchanging(student)
        worker = RolloutWorker(
            RolloutConfig(batch_size=8, sampling=sampling or SamplingConfig()),
            contexts,
            family,
            name="w",
            schedule=SCHEDULE,
            draws=Draws(3, len(tokens)),
            data=tokens,
            scorers=keep,
            weights=keep,
            ledger=keep,
            teacher_file=file,
            generated=generated,
        )
        lease = Lease(0, indices.start, len(indices), 0, None, 1)
        return from_arrow(worker.sample(lease)), teacher, tokens

    return build


def test_the_workers_student_guesses_for_the_teacher_whose_law_stays(sample, tiny):
    contexts = mixture(teacher={"min_prefix": 0.25, "max_prefix": 0.5, "draft_tokens": 3})
    batch, teacher, tokens = sample(contexts)
    draws, student = Draws(3, len(tokens)), tiny("llamagen", 1)
    _, cell_BL = tokens.pick(range(8), draws, 0.1)
    wanted = sample_rows(
        teacher,
        batch.label_B,
        [draws.noise_seed(i) for i in range(8)],
        SamplingConfig(),
        cell_BL=cell_BL,
        prefix_B=batch.prefix_B,
        draft=Draft(student, 3),
    )
    guessed = wanted.acceptance
    assert guessed is not None
    assert 0 < guessed.kept < guessed.guesses
    counted = batch.facts["guesses.teacher"], batch.facts["kept.teacher"]
    assert counted == (str(guessed.guesses), str(guessed.kept))
    assert torch.equal(batch.token_BL, wanted.token_BL)
    assert set(batch.law) == {"exact"}
    with torch.no_grad():
        said_BLV = teacher(batch.label_B, batch.token_BL, batch.plan).log_softmax(-1)
    said_BL = said_BLV.gather(-1, batch.token_BL[..., None])[..., 0] * batch.suffix_BL
    torch.testing.assert_close(batch.logprob_BL, said_BL, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", kinds("common.models.backbones"))
@pytest.mark.parametrize("lo", [0.0, 0.5])
def test_the_teachers_rows_are_its_own_decoding(sample, kind, lo):
    """Under the teacher's guidance and steps, whatever the student's; data keep the prefix."""
    steps = {"steps": 4} if kind == "arpg" else {}
    own = SamplingConfig.model_validate({"guidance": 2.0, "top_k": 9, "decoding": steps})
    contexts = mixture(teacher={"min_prefix": lo, "max_prefix": lo, "sampling": own.model_dump()})
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
    torch.testing.assert_close(batch.logprob_BL, wanted.logprob_BL, atol=1e-4, rtol=1e-4)
    k = int(batch.prefix_B[0])
    assert k == lo * tokens.spec.length
    assert torch.equal(batch.token_BL[:, :k], given_BL[:, :k])
    assert not torch.equal(batch.token_BL[:, k:], given_BL[:, k:])
    assert torch.equal(batch.label_B, label_B)


@pytest.mark.parametrize("kind", kinds("common.models.backbones"))
def test_a_mixed_lease_is_its_rows_one_by_one(sample, kind):
    third = {"ratio": 1, "min_prefix": 0.25, "max_prefix": 0.75}
    contexts = mixture(data={"ratio": 1}, student=third, teacher=third)
    batch, *_ = sample(contexts, kind)
    assert set(batch.context) == {"data", "student", "teacher"}
    for row in range(8):
        alone, *_ = sample(contexts, kind, indices=range(row, row + 1))
        assert alone.context[0] == batch.context[row]
        assert torch.equal(alone.token_BL[0], batch.token_BL[row])
        torch.testing.assert_close(alone.logprob_BL[0], batch.logprob_BL[row], atol=1e-4, rtol=1e-4)


def test_only_the_students_rows_go_stale_and_count_as_rollouts(sample):
    third = {"ratio": 1, "min_prefix": 0.25, "max_prefix": 0.75}
    batch, *_ = sample(mixture(data={}, student=third, teacher=third))
    flags = torch.tensor([name == "student" for name in batch.context])
    versions = torch.where(flags, 7, 2)
    assert to_arrow(replace(batch, version_B=versions)).schema.metadata[b"oldest"] == b"7"
    assert torch.equal(batch.on_policy_B, flags)
    assert torch.equal(batch.rollout_BL, batch.suffix_BL & flags[:, None])
    others, *_ = sample(mixture(data={}, teacher=third))
    assert to_arrow(others).schema.metadata[b"oldest"] == b"-1"


@pytest.mark.parametrize("kind", OF_BACKBONES)
def test_every_objective_takes_teacher_rows_as_data_or_refuses_them(sample, kind):
    """A loss on what the teacher sampled and nowhere else, or a sentence."""
    third = {"ratio": 1, "min_prefix": 0.25, "max_prefix": 0.75}
    objective = load_plugin("learner.objectives", kind).Config()
    shares = {"data": 0.4, "student": 0.3, "teacher": 0.3}
    if "behaviour" in objective.columns:
        with pytest.raises(InputError, match=f"{kind} corrects by the probability"):
            objective.check(shares)
        return
    objective.check(shares)
    objective.check({"teacher": 1.0})
    batch, *_ = sample(mixture(data={}, student=third, teacher=third))
    support_BL = built(objective).support(batch)
    for row, context in enumerate(batch.context):
        wanted = {
            "data": torch.ones_like(support_BL[row]),
            "teacher": batch.suffix_BL[row],
            "student": batch.suffix_BL[row] & objective.uses_rollouts,
        }[context]
        assert torch.equal(support_BL[row], wanted), context


def test_the_gate_leaves_the_teachers_rows_open(sample):
    from learner.objectives import varkd
    from learner.process_group import SingleProcess

    third = {"ratio": 1, "min_prefix": 0.25, "max_prefix": 0.75}
    batch, *_ = sample(mixture(data={}, student=third, teacher=third))
    entropy_BL = torch.full(batch.token_BL.shape, 1.0)
    entropy_BL[:, -1] = 3.15  # a confidence of 0.01 with 24 codes
    scored = batch.scored({"entropy": entropy_BL}, {})
    objective = built(varkd.Config.model_validate({"gate": {"tau": 0.1}}))
    token_weights = objective.token_weights(scored, {}, SingleProcess())
    off_BL = token_weights.support_BL & ~batch.on_policy_B[:, None]
    assert (token_weights.weight_BL[off_BL] == 1).all()
    assert (token_weights.weight_BL[batch.rollout_BL] < 1).all()


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


def test_a_teacher_of_another_order_gives_whole_samples_but_no_continuations(tiny, data):
    """A raster teacher and the slots of a random-order student."""
    teacher, student = tiny("llamagen"), tiny("arpg")
    plan, noise_BL = student.plan(range(4)), noise(range(4), data.spec.length)
    sampler = PrefixSampler(teacher, SamplingConfig())
    whole = assignment(mixture(teacher={}), range(4), data)
    found = sampler(whole, range(4), plan)
    own = teacher.plan(range(4))
    wanted = decode(teacher, whole.label_B, sampling=SamplingConfig(), noise_BL=noise_BL, plan=own)
    assert torch.equal(found.token_BL, wanted.token_BL.gather(1, plan.order_BL))
    assert torch.equal(found.logprob_BL, wanted.logprob_BL.gather(1, plan.order_BL))
    part = assignment(mixture(teacher={"min_prefix": 0.5, "max_prefix": 0.5}), range(4), data)
    with pytest.raises(InputError, match="decodes in another order than the student"):
        sampler(part, range(4), plan)
