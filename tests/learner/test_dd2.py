"""Distilled Decoding 2 in the learner: whose turn it is, what each step may change, what a snapshot
between two turns holds, and what is refused."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from building.dependent_codes import CODE_VD, fresh, generated, logprob, targets, taught
from building.objectives import Company

from common.errors import InputError
from common.exchange.packed_weights import unpack
from common.exchange.schedule import Phase
from learner.alternation import alternation
from learner.config import LearnerConfig
from learner.learner import Learner
from learner.objectives import dd2_csd, dd2_gts
from learner.resources import Resources
from learner.score_losses.points import draw_points
from learner.turns import Turns

ROWS = 32
RATE = {"learning_rate": 1e-2, "ema": 0.9}


def settings(steps=20, **changes):
    given = {"steps": steps, "global_batch_size": ROWS, "micro_batch": ROWS, "optimizer": RATE}
    return LearnerConfig.model_validate({**given, "max_staleness": 0, **changes})


def in_turns(config=None, steps=20, seed=0, ranks=None, **changes):
    """(alternation, generator, guidance network) that begin alike."""
    config = config or dd2_csd.Config.model_validate(
        {"guidance": {"steps": 2, "optimizer": RATE}, "mismatch": 0}
    )
    generator, guidance = fresh(), fresh()
    with torch.no_grad():  # gates are shut at first, and nothing would be made but noise
        for model in (generator, guidance):
            drawn = torch.Generator().manual_seed(seed)
            for weight in model.velocity_head.parameters():
                weight.add_(0.2 * torch.randn(weight.shape, generator=drawn))
    built = alternation(
        settings(steps, **changes),
        config,
        Resources(codebook=lambda: CODE_VD, guidance=lambda: guidance),
        (generator, guidance),
        seed=0,
        contexts=("student",),
        teacher=targets(),
        ranks=ranks,
    )
    return built, generator, guidance


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], value) for name, value in other.items())


def go(trained, generator, steps):
    """That many steps, each on rows that the generator of then makes."""
    found, version = [], trained.steps_done // 3 * 3
    for _ in range(steps):
        step = trained.steps_done
        version = step if trained.schedule.is_published(step) else version
        found.append(trained.step(generated(generator, step * ROWS, ROWS, version)))
    return found


def test_the_guidance_network_has_k_turns_and_then_the_generator_one():
    trained, generator, guidance = in_turns()
    for step in range(7):
        before = state(generator), state(guidance)
        (metrics,) = go(trained, generator, 1)
        is_generators = step % 3 == 2
        assert same(before[0], state(generator)) == (not is_generators)
        assert same(before[1], state(guidance)) == is_generators
        assert ("loss" in metrics, "guidance/loss" in metrics) == (is_generators, not is_generators)
        assert metrics["generator/steps"] == (step + 1) // 3
        assert metrics["guidance/steps"] == step + 1 - (step + 1) // 3
        published = trained.published("float32")
        assert published.version == step + 1
        assert same(state(generator), dict(unpack(published.payload)))
    assert trained.schedule.phases == (Phase(0, 3),)


def test_a_run_killed_between_the_turns_goes_on_to_the_same_numbers():
    """At every place of the cycle, through the bytes of a snapshot."""
    whole, generator, guidance = in_turns()
    rows = go(whole, generator, 9)
    for killed in (3, 4, 5):
        first, its_generator, _ = in_turns()
        go(first, its_generator, killed)
        kept = io.BytesIO()
        torch.save(first.snapshot(), kept)
        kept.seek(0)
        again, again_generator, again_guidance = in_turns(seed=1)
        again.restore(torch.load(kept, weights_only=True), killed)
        assert go(again, again_generator, 9 - killed) == rows[killed:]
        assert same(state(generator), state(again_generator))
        assert same(state(guidance), state(again_guidance))
        assert same(dict(whole.states())["student_ema"], dict(again.states())["student_ema"])


def test_each_network_has_a_schedule_of_its_own():
    config = dd2_csd.Config.model_validate(
        {"guidance": {"steps": 2, "optimizer": {"learning_rate": 1e-3, "warmup": 4}}}
    )
    optimizer = {**RATE, "schedule": "cosine"}
    trained, generator, _ = in_turns(config, steps=12, optimizer=optimizer)
    rows = go(trained, generator, 12)
    rates = [row["guidance/lr"] for row in rows if "guidance/lr" in row]
    assert rates == pytest.approx([2.5e-4, 5e-4, 7.5e-4] + [1e-3] * 5)
    assert [row["lr"] for row in rows if "lr" in row] == pytest.approx(
        [1e-2, 1e-2 * 0.853553, 5e-3, 1e-2 * 0.146447], rel=1e-4
    )


def test_at_an_alignment_the_generator_becomes_its_average_and_waits():
    """D8 of docs/one_step.md: bit for bit, and the guidance network's loss falls meanwhile."""
    config = dd2_csd.Config.model_validate(
        {
            "guidance": {"steps": 2, "optimizer": RATE},
            "alignment": {"after": 2, "steps": 40, "guidance_steps": 1},
            "draws": 8,
        }
    )
    trained, generator, _ = in_turns(config, steps=100)
    go(trained, generator, 6)
    average = {n: v.clone() for n, v in dict(trained.states())["student_ema"].items()}
    assert not same(average, state(generator))
    assert trained.schedule.is_published(6)
    rows = [trained.step(generated(generator, 6 * ROWS, ROWS, 6))]
    assert same(average, state(generator))
    for step in range(7, 46):
        rows.append(trained.step(generated(generator, step * ROWS, ROWS, 6)))
    assert same(average, state(generator))
    assert all("guidance/loss" in row for row in rows)
    first, last = (sum(row["guidance/loss"] for row in part) for part in (rows[1:11], rows[-10:]))
    assert last < 0.9 * first
    turns = ["loss" in row for row in go(trained, generator, 4)]
    assert turns == [False, True, False, True]


@pytest.mark.parametrize(
    ("alignment", "steps", "wanted"),
    [
        (None, 11, [0, 0, 1] * 3 + [0, 0]),
        ((2, 3, 1), 14, [0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 1, 0]),
    ],
)
def test_turns_are_a_function_of_the_step(alignment, steps, wanted):
    turns = Turns(2, alignment)
    found = [turns.turn(step) == "generator" for step in range(steps)]
    assert found == wanted
    for step in range(steps + 1):
        assert turns.done(step)["generator"] == sum(wanted[:step])
        assert turns.done(step)["guidance"] == step - sum(wanted[:step])
    assert [step for step in range(steps) if turns.aligns(step)] == ([6] if alignment else [])


def test_rows_that_come_out_otherwise_are_refused():
    trained, generator, _ = in_turns()
    go(trained, generator, 2)
    rows = generated(generator, 2 * ROWS, ROWS)
    token_BL = rows.token_BL.clone()
    token_BL[5, 1] = (token_BL[5, 1] + 1) % 5
    before = state(generator)
    with pytest.raises(InputError, match=r"1.0% of the tokens of images 64 to 95 come out other"):
        trained.step(replace(rows, token_BL=token_BL))
    assert same(before, state(generator))
    foreign = replace(rows, seed_B=rows.seed_B + 10**6)
    with pytest.raises(InputError, match=r"come out otherwise when the learner makes them again"):
        trained.step(foreign)
    with pytest.raises(InputError, match="without the seeds"):
        trained.step(replace(rows, seed_B=None))
    assert "loss" in trained.step(rows)


@pytest.mark.parametrize("cycles", [1, 2, 50])
def test_a_row_of_an_older_generator_is_refused(cycles):
    """Of the one before as of one that is fifty steps of the generator behind."""
    trained, _, _ = in_turns()
    trained.steps_done = 150
    with pytest.raises(InputError, match=f"step 151: a row was made by version {150 - 3 * cycles}"):
        trained.step(generated(fresh(), 0, ROWS, version=150 - 3 * cycles))


def test_micro_batches_change_nothing(assert_same_gradients):
    for steps in (0, 2):  # a guidance step, and one of the generator
        found = []
        for micro_batch in (ROWS, 10):
            trained, generator, guidance = in_turns(micro_batch=micro_batch)
            go(trained, generator, steps)
            metrics = go(trained, generator, 1)[0]
            named = (generator if steps else guidance).named_parameters()
            found.append((metrics, {n: p.grad.clone() for n, p in named}))
        (wanted, its), (metrics, grads) = found
        name = "loss" if steps else "guidance/loss"
        assert metrics[name] == pytest.approx(wanted[name], rel=1e-4)
        assert_same_gradients(grads, its)


def test_two_ranks_learn_as_one():
    """A cycle on halves of the same rows; every rank has both networks."""
    whole, generator, guidance = in_turns()
    batches = [generated(generator, step * ROWS, ROWS) for step in range(3)]
    wanted = [whole.step(batch) for batch in batches]
    shared, barrier = {}, threading.Barrier(2)
    halves = [in_turns(ranks=Company(rank, shared, barrier)) for rank in (0, 1)]

    def go_on(rank):
        half = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
        return [halves[rank][0].step(batch.rows(half)) for batch in batches]

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(go_on, (0, 1)))
    assert found[0] == found[1]
    for row, its in zip(found[0], wanted, strict=True):
        assert row == pytest.approx(its, rel=1e-3)
    for _, its_generator, its_guidance in halves:
        for mine, other in ((generator, its_generator), (guidance, its_guidance)):
            for name, value in other.state_dict().items():
                torch.testing.assert_close(value, mine.state_dict()[name], atol=2e-4, rtol=1e-3)


def test_the_first_stage_learns_the_teachers_velocity():
    """Against the definition, slot by slot in float64: (x - D) / t of x = (1 - t) c + t noise."""
    student, config = fresh(), dd2_gts.Config(draws=2)
    resources = Resources(codebook=lambda: CODE_VD)
    ours = Learner(
        settings(),
        config.build(resources),
        student,
        seed=0,
        contexts=("teacher",),
        teacher=targets(),
    )
    batch = taught(0, ROWS)
    points = draw_points(range(ROWS), 3, 2, draws=2, times=config.times)
    p_BLV = logprob(batch.label_B, batch.token_BL).double().exp()
    total = 0.0
    for draw in range(2):
        for b in range(ROWS):
            for slot in range(3):
                t, noise_D = (
                    points.time_MBL[draw, b, slot].double(),
                    points.noise_MBLD[draw, b, slot],
                )
                x_D = (1 - t) * CODE_VD[batch.token_BL[b, slot]] + t * noise_D
                apart_V = (x_D - (1 - t) * CODE_VD).square().sum(-1)
                weight_V = p_BLV[b, slot] * (-apart_V / (2 * t * t)).exp()
                mean_D = (weight_V @ CODE_VD.double()) / weight_V.sum()
                total += float(((x_D - mean_D) / t).square().sum())  # a fresh head says 0
    metrics = ours.step(batch)
    assert metrics["loss"] == pytest.approx(total / (2 * ROWS * 3), rel=1e-4)
    assert metrics["sequence_loss/teacher"] == pytest.approx(metrics["loss"], rel=1e-5)


def test_the_head_may_learn_alone():
    student = fresh()
    before = state(student)
    ours = Learner(
        settings(),
        dd2_gts.Config(trains="head").build(Resources(codebook=lambda: CODE_VD)),
        student,
        seed=0,
        contexts=("teacher",),
        teacher=targets(),
    )
    for step in range(2):
        ours.step(taught(step * ROWS, ROWS))
    moved = {n for n, value in student.state_dict().items() if not torch.equal(value, before[n])}
    assert moved
    assert all(name.startswith("velocity_head.") for name in moved)


def test_each_stage_asks_for_its_own_rows():
    with pytest.raises(InputError, match="learns from the teacher's sequences, but"):
        dd2_gts.Config().check({"teacher": 0.5, "student": 0.5})
    with pytest.raises(InputError, match="learns from the generator's own sequences, but"):
        dd2_csd.Config().check({"teacher": 1.0})
    dd2_gts.Config().check({"teacher": 1.0})
    dd2_csd.Config().check({"student": 1.0})
