"""Both stages of Distilled Decoding 2 on a teacher whose joint distribution is known, through the
pipeline's own roles: the acceptance tests D5 and D6 (docs/one_step.md, "Checked on tables").

Three codes in three slots, so that a short training already tells what is learned from what is not;
eight codes are in tests/deploy/test_known_joint.py and take their time.
"""

import pytest

from benchmarks.dd2_toy import diffused, first_stage, one_step, second_stage
from benchmarks.tabular import Tabular

TABLE = Tabular(codes=3, spread=2.5, seed=104)
STAGE1, STAGE2, K, DRAWN = 200, 40, 3, 5_000


def small(steps, rate, *overrides):
    sizes = {"models.teacher.width": 32, "models.teacher.depth": 2, "models.student.head_width": 32}
    rows = ("rollout.batch_size", "learner.global_batch_size", "learner.micro_batch")
    given = {**sizes, **dict.fromkeys(rows, 128), "tokenizer.vocab_size": 3}
    given |= {"learner.steps": steps, "learner.optimizer": optimizer(rate)}
    return [*(f"{key}={value}" for key, value in given.items()), *overrides]


def optimizer(rate):
    return f"{{learning_rate={rate},ema=0.9,warmup=5,schedule='cosine'}}"


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return first_stage(TABLE, tmp_path_factory.mktemp("first"), *small(STAGE1, 1e-2))


def ended(start, folder):
    """(total variation of the averaged generator, counts of steps) after both took turns."""
    counts = {}
    generator = second_stage(
        TABLE,
        start,
        folder,
        *small(STAGE2 * (K + 1), 4e-3, f"objective.guidance.optimizer={optimizer(8e-3)}"),
        f"objective.guidance.steps={K}",
        after_step=lambda run, learner, metrics: counts.update(metrics),
    )
    return mean(one_step(TABLE, generator, DRAWN)), counts


def mean(values):
    return sum(values) / len(values)


def test_the_first_stage_makes_a_diffusion_model_and_no_generator(start):
    assert max(diffused(TABLE, start, count=4_000)) < 0.2
    assert mean(one_step(TABLE, start, DRAWN)) > mean(TABLE.independent())


def test_the_second_stage_makes_a_generator_whose_slots_depend_on_each_other(start, tmp_path):
    """Below what slots alone could do at best; networks that nothing taught do not get there in as
    many steps."""
    found, counts = ended(start, tmp_path / "second")
    assert (counts["generator/steps"], counts["guidance/steps"]) == (STAGE2, STAGE2 * K)
    assert found < mean(TABLE.independent()) - 0.05
    control, _ = ended(None, tmp_path / "control")
    assert control > found + 0.1
