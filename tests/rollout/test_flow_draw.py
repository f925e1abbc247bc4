"""Sampling by the flow: the teacher's own joint distribution, reproducible from seeds.

The acceptance tests R1 to R3 of docs/one_step.md; R4 and R5 are in test_pair_rows.py.
"""

import itertools
from dataclasses import replace

import pytest
import torch
from building.samplers import Unchanging

from common.data.tokens import load_tokens
from common.errors import InputError
from common.exchange.schedule import Lease
from common.exchange.trajectory import from_arrow
from common.flow.laws import FlowCodes
from common.flow.solver import carry
from common.flow.solvers import dpmpp_3m, rk4_rho
from common.models.filters import filtered_logprob
from common.models.generator import gaussian
from common.randomness import Draws
from common.spec import SequenceSpec
from common.tokenization.codes import flow_codes
from deploy.stages.generate import generate, load_generated
from rollout.config import RolloutConfig
from rollout.flow_draw import FlowDraw
from rollout.sampler import SamplingConfig, sample
from rollout.worker import RolloutWorker

ROWS = 40_000
"""Frequencies of so many rows are 0.011 and 0.013 from the laws below, by chance alone."""
BATCH = 20_000
RASTER = SequenceSpec(8, 3, (1, 3), num_classes=2)
SCALES = SequenceSpec(4, 5, (2, 2), num_classes=2, scales=(1, 2))
FAMILIES = {"llamagen": RASTER, "var": SCALES}
COUNTED = {"llamagen": RASTER, "var": replace(SCALES, vocab_size=3)}
"""512 and 243 sequences: few enough to be counted."""
SEEDS = {RASTER: 3, SCALES: 1, COUNTED["var"]: 2}
"""Of models in which every token matters to those after it."""


@pytest.fixture(params=sorted(FAMILIES))
def teacher(request, sharp):
    return sharp(request.param, FAMILIES[request.param])


@pytest.fixture
def sharp(tiny):
    """A tiny teacher whose tokens hang on one another."""

    def build(kind, spec):
        model = tiny(kind, seed=SEEDS[spec], spec=spec)
        with torch.no_grad():
            if kind == "llamagen":
                model.head.weight.mul_(4.0)
            else:  # what the first scale painted counts, not the class
                model.word_embed.weight.mul_(10.0)
                model.class_emb.weight.mul_(0.3)
                model.pos_start.mul_(0.1)
        return model

    return build


def codes_of(model, width=2):
    if hasattr(model, "quantizer"):
        return FlowCodes(model.quantizer.code_VD)
    return FlowCodes(torch.randn(model.spec.vocab_size, width, generator=seeded(5)))


def seeded(number):
    return torch.Generator().manual_seed(number)


def joint_of(model, label, sampling):
    """(every sequence, its probability) by enumeration."""
    spec = model.spec
    token_NL = torch.tensor(list(itertools.product(range(spec.vocab_size), repeat=spec.length)))
    label_N = torch.full((len(token_NL),), label)
    with torch.no_grad():
        logit_NLV = model(label_N, token_NL, model.plan(range(len(token_NL))))
    logprob_NL = filtered_logprob(logit_NLV, sampling).gather(-1, token_NL[..., None])[..., 0]
    return token_NL, logprob_NL.double().sum(1).exp()


def generated(model, label, sampling, rows=ROWS):
    parts = []
    for first in range(0, rows, BATCH):
        label_B = torch.full((BATCH,), label)
        seeds = range(first, first + BATCH)
        parts.append(sample(model, label_B, seeds, sampling, codes=codes_of(model)).token_BL)
    return torch.cat(parts)


def frequencies(token_NL, vocab):
    place = vocab ** torch.arange(token_NL.shape[1]).flip(0)
    return torch.bincount((token_NL * place).sum(1), minlength=vocab ** token_NL.shape[1]) / len(
        token_NL
    )


@pytest.mark.parametrize("kind", sorted(COUNTED))
def test_whole_sequences_have_the_teachers_joint_distribution(sharp, kind):
    teacher = sharp(kind, COUNTED[kind])
    sampling = SamplingConfig(flow=rk4_rho.Config(steps=20))
    token_NL, p_N = joint_of(teacher, 1, sampling)
    assert float(p_N.sum()) == pytest.approx(1, abs=1e-5)
    vocab = teacher.spec.vocab_size
    found = frequencies(generated(teacher, 1, sampling), vocab)
    apart = float((found - p_N).abs().sum() / 2)
    marginals = [
        torch.zeros(vocab).double().index_add_(0, token_NL[:, slot], p_N)
        for slot in range(token_NL.shape[1])
    ]
    product_N = torch.stack([m[token_NL[:, k]] for k, m in enumerate(marginals)]).prod(0)
    independent = float((product_N - p_N).abs().sum() / 2)
    assert apart <= 0.02
    assert apart <= independent / 10


def test_every_row_is_recomputed_from_its_seed(teacher):
    """By another way: one pass of the teacher over the finished rows."""
    sampling = SamplingConfig(flow=dpmpp_3m.Config(), guidance=1.5)
    label_B, seeds = torch.tensor([0, 1] * 200), range(1000, 1400)
    codes = codes_of(teacher)
    token_BL = sample(teacher, label_B, seeds, sampling, codes=codes).token_BL
    again_BL = sample(teacher, label_B, seeds, sampling, codes=codes).token_BL
    assert torch.equal(token_BL, again_BL)
    plan = teacher.plan(seeds)
    with torch.no_grad():
        given = teacher(label_B, token_BL, plan)
        null = teacher(torch.full_like(label_B, teacher.spec.null_class), token_BL, plan)
    scale_L = torch.tensor(
        [
            scale
            for scale, size in zip(scales_of(teacher, plan), plan.step_sizes, strict=True)
            for _ in range(size)
        ]
    )[:, None]
    law = codes.law((null + scale_L * (given - null)).log_softmax(-1).flatten(0, 1))
    noise_BLD = gaussian(seeds, teacher.spec.length, codes.code_VD.shape[1])
    offline_BL = carry(sampling.flow, law, noise_BLD.flatten(0, 1)).token_N.view_as(token_BL)
    assert float((offline_BL == token_BL).all(1).double().mean()) >= 0.99


def scales_of(model, plan):
    """VAR: 1 + s k / (K - 1), nothing at the first map; LlamaGen: s throughout."""
    last = len(plan.step_sizes) - 1
    if model.guidance_rule == "var":
        return [1 + 1.5 * step / last for step in range(last + 1)]
    return [1.5] * (last + 1)


@pytest.mark.parametrize(
    "filters", [{"top_k": 3}, {"top_p": 0.7}, {"top_k": 1}, {"temperature": 0.5, "guidance": 2.0}]
)
@torch.no_grad()
def test_filters_are_the_samplers_own(teacher, filters):
    """All tokens are possible ones, and the first has the processed law of its class."""
    sampling, count = SamplingConfig(flow=rk4_rho.Config(steps=20), **filters), 4000
    label_B = torch.ones(count, dtype=torch.long)
    drawn = sample(teacher, label_B, range(count), sampling, codes=codes_of(teacher))
    assert (drawn.logprob_BL > -torch.inf).all()  # none of probability 0
    plan, nothing_1L = teacher.plan([0]), torch.zeros(1, teacher.spec.length).long()
    given, null = (teacher(torch.tensor([k]), nothing_1L, plan)[:, 0] for k in (1, 2))
    scale = filters.get("guidance", 1.0) if teacher.guidance_rule == "llamagen" else 1.0
    p_V = filtered_logprob(null + scale * (given - null), sampling)[0].exp()

    def apart(token_B):
        return float((token_B.bincount(minlength=len(p_V)) / count - p_V).abs().sum() / 2)

    floor = max(apart(p_V.multinomial(count, True, generator=seeded(k))) for k in range(20))
    assert apart(drawn.token_BL[:, 0]) <= 1.5 * floor + 1e-6
    if sampling.top_k == 1:
        plain = sample(teacher, label_B, range(count), SamplingConfig(**filters))
        assert torch.equal(drawn.token_BL, plain.token_BL)


def test_no_guidance_and_no_filter_leave_the_plain_law(teacher):
    """Of VAR the first map is never guided; of both a guided token differs somewhere."""
    label_B, codes = torch.tensor([0, 1] * 100), codes_of(teacher)

    def tokens(**settings):
        sampling = SamplingConfig(flow=rk4_rho.Config(steps=20), **settings)
        return sample(teacher, label_B, range(200), sampling, codes=codes).token_BL

    plain_BL = tokens()
    nothing = 1.0 if teacher.guidance_rule == "llamagen" else 0.0
    assert torch.equal(tokens(guidance=nothing), plain_BL)
    assert torch.equal(tokens(top_k=0, top_p=1.0), plain_BL)
    guided_BL = tokens(guidance=3.0)
    unlike_L = (guided_BL != plain_BL).any(0)
    assert unlike_L[1:].any()
    assert bool(unlike_L[0]) == (teacher.guidance_rule == "llamagen")


def test_a_vector_belongs_to_its_cell_in_whichever_order_cells_are_decoded(tiny):
    plan = tiny("arpg").plan([3, 4])
    slot_BLD = FlowDraw(rk4_rho.Config(), FlowCodes(torch.eye(24))).slot_noise([3, 4], plan)
    cell_BLD = gaussian([3, 4], plan.order_BL.shape[1], 24)
    for row, order_L in enumerate(plan.order_BL.tolist()):
        for slot, cell in enumerate(order_L):
            assert torch.equal(slot_BLD[row, slot], cell_BLD[row, cell])


def test_company_and_prefixes_change_no_row(teacher):
    sampling = SamplingConfig(flow=rk4_rho.Config())
    label_B, codes = torch.tensor([0, 1, 1, 0]), codes_of(teacher)
    whole = sample(teacher, label_B, range(4), sampling, codes=codes)
    alone = sample(teacher, label_B[2:3], [2], sampling, codes=codes)
    assert torch.equal(alone.token_BL[0], whole.token_BL[2])
    on = sample(
        teacher,
        label_B,
        range(4),
        sampling,
        codes=codes,
        cell_BL=whole.cell_BL,
        prefix_B=torch.tensor([0, 1, 1, teacher.spec.length]),
    )
    assert torch.equal(on.token_BL, whole.token_BL)


def test_codes_of_another_vocabulary_are_refused(sharp):
    model, sampling = sharp("llamagen", RASTER), SamplingConfig(flow=dpmpp_3m.Config())
    with pytest.raises(InputError, match="carries noise to 9 codes, but the model has a vocab"):
        sample(model, torch.zeros(1).long(), [0], sampling, codes=FlowCodes(torch.eye(9)))


def test_a_students_rollouts_are_drawn():
    with pytest.raises(
        ValueError, match=r"flow is set \(kind dpmpp_3m\), but a student is trained"
    ):
        RolloutConfig.model_validate({"sampling": {"flow": {"kind": "dpmpp_3m"}}})
    assert SamplingConfig(flow=rk4_rho.Config()).is_plain
    assert not SamplingConfig(flow=dpmpp_3m.Config()).is_plain


FLOWING = "contexts.sources.teacher={source='dataset',sampling={flow={kind='dpmpp_3m'}}}"


def test_a_dataset_of_pairs_has_the_seed_of_every_row(own_tokens, quiet):
    settings = (FLOWING, "contexts.sources.teacher.sequences=200", "tokens.part_images=64")
    config, workspace = own_tokens(*settings)
    generate(config, workspace, quiet, local=True)
    made = load_tokens(workspace.teacher_tokens)
    teacher = workspace.model(config, "teacher").load()
    assert made.seed_N is not None
    seeds = made.seed_N.tolist()
    assert len(set(seeds)) == 200
    codes = flow_codes(workspace.tokenizer)
    sampling = config.contexts.sources["teacher"].sampling
    again = sample(teacher, made.label_N, seeds, sampling, codes=codes)
    assert torch.equal(again.cell_BL, made.token_NAL[:, 0].long())
    assert workspace.teacher_tokens.stat().st_size < 200 * (8 + 8 + 16) + 8000


@pytest.mark.parametrize("source", ["dataset", "online"])
def test_a_worker_hands_on_the_seed_of_every_pair(own_tokens, quiet, source):
    """The tokens of a row are those that the teacher's sampler makes of its label and seed."""
    few = ",sequences=200" if source == "dataset" else ""
    teachers = f"{{source='{source}',ratio=1.0,sampling={{flow={{kind='dpmpp_3m'}}}}{few}}}"
    config, workspace = own_tokens(
        f"contexts.sources.teacher={teachers}",
        "contexts.mix_per=sample",
        "rollout.class_dropout=0.0",
        "contexts.sources.student.ratio=0",
    )
    if source == "dataset":
        generate(config, workspace, quiet, local=True)
    file = workspace.model(config, "teacher")
    data = load_tokens(workspace.train_tokens)
    worker = RolloutWorker(
        config.rollout,
        config.contexts,
        config.models.student,
        name="worker",
        schedule=config.schedule(),
        draws=Draws(3, len(data)),
        data=data,
        scorers=None,
        weights=Unchanging(config.models.student.build(data.spec)),
        ledger=None,
        teacher_file=file,
        generated=load_generated(config, workspace),
    )
    batch = from_arrow(worker.sample(Lease(0, 0, 16, 0, None, 0)))
    paired_B = torch.tensor([name == "teacher" for name in batch.context])
    assert batch.seed_B is not None
    assert 0 < int(paired_B.sum()) < 16
    assert torch.equal(batch.seed_B < 0, ~paired_B)
    seeds = batch.seed_B[paired_B].tolist()
    sampling = config.contexts.sources["teacher"].sampling
    codes = flow_codes(workspace.tokenizer)
    wanted = sample(file.load(), batch.label_B[paired_B], seeds, sampling, codes=codes)
    assert torch.equal(batch.token_BL[paired_B], wanted.token_BL)
