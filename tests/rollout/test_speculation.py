"""Guessing ahead leaves the law as it is: against enumeration, with a broken rule as control."""

import itertools
from functools import cache

import pytest
import torch
from building.runs import go, rows_of

from common.artifacts.backbone_file import save_backbone
from common.errors import InputError
from common.exchange.segments import Segments, renumbered
from common.exchange.trajectory import from_arrow
from common.models.backbone import build_seeded
from common.models.backbones import llamagen
from common.models.jacobi import JacobiConfig
from common.models.plan import ZipARConfig
from common.spec import SequenceSpec
from deploy.report.summary import final_numbers
from deploy.stages.generate import generate, load_generated
from rollout.context import law_of
from rollout.evaluation.likelihood import acceptance_of_rows
from rollout.jacobi_window import JacobiWindow
from rollout.model_draft import Draft
from rollout.sampler import SamplingConfig, decode, noise
from rollout.speculation import Rows, speculate
from rollout.window_stepper import WindowStepper

SPEC = SequenceSpec(vocab_size=4, length=4, grid=(2, 2), num_classes=3)
LONG = SequenceSpec(vocab_size=24, length=30, grid=(5, 6), num_classes=3)
SEQUENCES = torch.tensor(list(itertools.product(range(4), repeat=4)))
DRAWS = 30_000
REDRAWS = ("fresh", "keep", "couple")


def model_of(seed, spread=0.25):
    model = build_seeded(llamagen.Config(width=16, depth=1, heads=2, multiple_of=8), SPEC, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@cache
def models():
    return model_of(0), model_of(1)


@torch.no_grad()
def logprob_BLV(model, token_BL, scale=1.0):
    plan = model.plan(range(len(token_BL)))
    own, null = (
        model(torch.full((len(token_BL),), label), token_BL, plan) for label in (1, SPEC.null_class)
    )
    return (null + scale * (own - null)).log_softmax(-1)


def joint(logprob_BLV):
    return logprob_BLV.gather(-1, SEQUENCES[..., None])[..., 0].sum(1).exp()


def distance(counts_B, law_B):
    return float((counts_B / counts_B.sum() - law_B).abs().sum()) / 2


def counts(token_BL):
    return (token_BL * torch.tensor([64, 16, 4, 1])).sum(1).bincount(minlength=256)


@cache
def ceiling(scale=1.0):
    """1.3 times the distance of as many true draws, with the law."""
    law_B = joint(logprob_BLV(models()[0], SEQUENCES, scale))
    generator = torch.Generator().manual_seed(0)
    true = [torch.multinomial(law_B, DRAWS, True, generator=generator) for _ in range(8)]
    floor = sum(distance(token.bincount(minlength=256), law_B) for token in true) / 8
    return 1.3 * floor, law_B


def noise_of(rows, length=4):
    generator = torch.Generator().manual_seed(7)
    return torch.rand(rows, length, generator=generator, dtype=torch.float64)


def sampling_of(window=3, redraw="couple", **more):
    sjd = JacobiConfig(window=window, redraw=redraw)
    return SamplingConfig.model_validate({"decoding": llamagen.Decoding(sjd=sjd), **more})


def drawn(sampling, draft=None):
    model = models()[0]
    return decode(
        model,
        torch.ones(DRAWS, dtype=torch.long),
        sampling=sampling,
        noise_BL=noise_of(DRAWS),
        plan=model.plan(range(DRAWS)),
        draft=draft,
    )


@pytest.mark.parametrize("redraw", REDRAWS)
def test_the_joint_law_is_the_models_and_so_is_the_logprob(redraw):
    most, law_B = ceiling()
    found = drawn(sampling_of(redraw=redraw))
    assert distance(counts(found.token_BL), law_B) < most
    said_BLV = logprob_BLV(models()[0], found.token_BL)
    said_BL = said_BLV.gather(-1, found.token_BL[..., None])[..., 0]
    torch.testing.assert_close(found.logprob_BL, said_BL, atol=1e-5, rtol=1e-5)


def test_a_residual_that_forgets_what_was_rejected_is_seen():
    model, (most, law_B) = models()[0], ceiling()
    given = torch.zeros(DRAWS, 4, dtype=torch.long)
    ones = torch.ones(DRAWS, dtype=torch.long)
    rows = Rows(ones, given, torch.zeros_like(ones), noise_of(DRAWS))
    window = JacobiWindow(JacobiConfig(window=3, redraw="fresh"), 4, 4)
    stepper = WindowStepper(model, SamplingConfig(), None, None)
    with torch.no_grad():
        token_BL, *_ = speculate(stepper, window, rows, residual=lambda logp, logq: logp)
    assert distance(counts(token_BL), law_B) > most


def test_guided_and_filtered_draws_have_the_guided_and_filtered_law():
    most, law_B = ceiling(1.7)
    assert distance(counts(drawn(sampling_of(guidance=1.7)).token_BL), law_B) < most
    found = drawn(sampling_of(redraw="fresh", top_k=2))
    said_BLV = logprob_BLV(models()[0], found.token_BL)
    best = said_BLV.topk(2).indices
    assert (best == found.token_BL[..., None]).any(-1).all()
    chances = said_BLV.topk(2).values.softmax(-1)[:, 0, 0]
    first = float((found.token_BL[:, 0] == best[:, 0, 0]).double().mean())
    assert abs(first - float(chances[0])) < 4 * 0.5 / DRAWS**0.5


@pytest.mark.parametrize(("ahead", "guidance"), [(4, None), (2, 1.7)])
def test_a_students_guesses_leave_the_teachers_law_and_are_accepted_as_reports_say(ahead, guidance):
    """1 - TV, of the student as it guesses and the teacher as it is sampled; where every slot is
    guessed, it is the number of reports on the teacher's sequences."""
    student, scale = models()[1], guidance or 1.0
    most, law_B = ceiling(scale)
    found = drawn(SamplingConfig(guidance=guidance), Draft(student, ahead))
    assert distance(counts(found.token_BL), law_B) < most
    if ahead < SPEC.length:
        return
    p_BLV, q_BLV = logprob_BLV(models()[0], SEQUENCES), logprob_BLV(student, SEQUENCES)
    expected = float((law_B * acceptance_of_rows(q_BLV, p_BLV)).sum())
    assert found.acceptance.guesses == SPEC.length * DRAWS
    error = (expected * (1 - expected) / found.acceptance.guesses) ** 0.5
    assert abs(found.acceptance.share - expected) < 4 * error


@pytest.mark.parametrize("redraw", REDRAWS)
def test_a_sequence_does_not_depend_on_who_shares_the_batch(tiny, redraw):
    """Nor on its neighbours' prefixes, and the prefix is kept."""
    model, sampling = tiny("llamagen", spec=LONG), sampling_of(8, redraw, guidance=1.5)
    given_BL = torch.randint(24, (5, 30), generator=torch.Generator().manual_seed(1))
    prefix_B, label_B = torch.tensor([0, 7, 30, 29, 12]), torch.tensor([0, 1, 2, 1, 3])

    def part(rows):
        return decode(
            model,
            label_B[rows],
            sampling=sampling,
            noise_BL=noise(range(5), 30)[rows],
            plan=model.plan(rows),
            given_BL=given_BL[rows],
            prefix_B=prefix_B[rows],
        )

    whole = part(list(range(5)))
    for row in range(5):
        alone, prefix = part([row]), int(prefix_B[row])
        assert torch.equal(alone.token_BL[0], whole.token_BL[row])
        assert torch.equal(whole.token_BL[row, :prefix], given_BL[row, :prefix])
        assert not whole.logprob_BL[row, :prefix].any()
        assert (whole.logprob_BL[row, prefix:] < 0).all()
    with torch.no_grad():
        own, null = (
            model(ids_B, whole.token_BL, whole.plan)
            for ids_B in (label_B, torch.full_like(label_B, LONG.null_class))
        )
    said_BLV = (null + 1.5 * (own - null)).log_softmax(-1)
    said_BL = said_BLV.gather(-1, whole.token_BL[..., None])[..., 0]
    behind_BL = torch.arange(30) >= prefix_B[:, None]
    torch.testing.assert_close(whole.logprob_BL, said_BL * behind_BL, atol=1e-4, rtol=1e-4)


def test_guessing_is_exact_and_zipar_is_not():
    assert sampling_of().is_plain
    assert law_of(sampling_of()) == "exact"
    zipar = SamplingConfig(decoding=llamagen.Decoding(zipar=ZipARConfig()))
    assert law_of(zipar) == "approximate"


def test_who_may_correct_by_what_was_drawn(run_in):
    """A ratio of probabilities takes such rollouts, and refuses those of ZipAR."""
    kind, decoding = "objective.kind=sampled_rkl", "rollout.sampling.decoding"
    run_in(kind, f"{decoding}.sjd.window=4")
    with pytest.raises(InputError, match=r"rollout\.sampling changes that distribution"):
        run_in(kind, f"{decoding}.zipar.window=2")


def test_rows_of_a_run_say_how_many_guesses_were_kept(run_in):
    """Of the records that the step was made of: the student's own guesses, and for the teacher."""
    run = run_in(
        "rollout.sampling.decoding.sjd.window=4",
        "contexts.sources.teacher={ratio=1,draft_tokens=2}",
        "learner.ordered=true",
        "learner.steps=4",
        "buffer.keep_gb=1",
    )
    go(run)
    kept, rows = Segments(run[1].rollouts), rows_of(run[1])
    records = [from_arrow(kept.record(lease)) for lease in kept.leases]
    per_step, seen = len(records) // len(rows), set[str]()
    for step, row in enumerate(rows):
        facts = [record.facts for record in records[step * per_step :][:per_step]]
        for way in ("student", "teacher"):
            guesses, held = (
                sum(int(one.get(f"{name}.{way}", 0)) for one in facts)
                for name in ("guesses", "kept")
            )
            assert row.get(f"draft_acceptance/{way}") == (held / guesses if guesses else None)
            seen |= {way} if held else set()
    assert seen == {"student", "teacher"}
    assert all(row.get("draft_acceptance/teacher", 0) < 1 for row in rows)
    again = renumbered(kept.record(kept.leases[0]), {}).schema.metadata
    assert not [key for key in again if key.startswith((b"guesses.", b"kept."))]
    assert {"student", "teacher"} <= final_numbers(rows)["draft_acceptance"].keys()


def test_what_does_not_go_together_is_refused(tiny):
    decoding = llamagen.Decoding(sjd=JacobiConfig())
    for kind in ("var", "arpg"):
        with pytest.raises(InputError, match=rf"decoding.sjd is set \(window 8\), but {kind} "):
            tiny(kind).plan([0], decoding)
    with pytest.raises(ValueError, match="two ways of decoding"):
        llamagen.Decoding(sjd=JacobiConfig(), zipar=ZipARConfig())
    with pytest.raises(ValueError, match="draws codes by rejection"):
        SamplingConfig.model_validate({"decoding": decoding, "flow": {"kind": "heun"}})


def test_a_draft_leaves_a_dataset_that_says_how_much_was_kept(own_tokens, quiet, tiny, tmp_path):
    """The teacher as its own draft is right but for the order of sums; a file that cannot guess is
    refused."""
    source = "contexts.sources.teacher={source='dataset',sequences=12}"
    config, workspace = own_tokens(source, "generate.draft=missing.safetensors")
    with pytest.raises(InputError, match=r"missing\.safetensors is no model that varkd wrote"):
        generate(config, workspace, quiet, local=True)
    other = tmp_path / "other.safetensors"
    save_backbone(other, tiny("llamagen"), llamagen.Config.tiny())

    def made(draft):
        chosen = config.generate.model_copy(update={"draft": draft})
        return generate(config.model_copy(update={"generate": chosen}), *rest, local=True)

    rest = workspace, quiet
    with pytest.raises(InputError, match="both must be trained on the same tokens"):
        made(other)
    found = made(workspace.teacher)
    assert found == {"sequences": 12, "fresh": True, "acceptance": pytest.approx(1, abs=0.01)}
    assert len(load_generated(config, workspace)) == 12
