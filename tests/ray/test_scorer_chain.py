"""A chain of two scorers, in one process and on Ray, with replicas and refusals."""

import json

import pytest

from common.errors import InputError
from deploy.stages.distill import distill

CHAIN = (
    "scorers.teacher.kind=teacher",
    "scorers.opinion.kind=token_logprob",
    "scorers.opinion.replicas=2",
)
ORDERED = ("learner.ordered=true", "objective.kind=minillm", "learner.steps=3")


def losses(run):
    lines = (run[1].root / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.ray
def test_a_chain_learns_on_ray_as_in_one_process_and_as_the_learner_alone(
    run_in, ray_cluster, quiet
):
    """minillm reads log p(y_t): from the record, or by a pass of its own over the same signal."""
    alone = run_in(*ORDERED, name="alone")
    distill(*alone, quiet, local=True)
    chained = run_in(*ORDERED, *CHAIN, name="chained")
    assert list(chained[0].scorers) == ["teacher", "opinion"]
    distill(*chained, quiet, local=True)
    here = losses(chained)
    assert here == pytest.approx(losses(alone), rel=1e-5)
    distill(*chained, quiet, local=False, restart=True)
    assert losses(chained) == here


@pytest.mark.ray
@pytest.mark.parametrize("local", [True, False])
def test_what_a_later_scorer_refuses_ends_the_run_with_its_sentence(
    run_in, ray_cluster, quiet, local
):
    run = run_in("scorers.opinion.kind=token_logprob", "scorers.teacher.kind=teacher")
    assert list(run[0].scorers) == ["opinion", "teacher"]
    with pytest.raises(InputError, match="put it after the table of kind teacher"):
        distill(*run, quiet, local=local)
    assert not run[1].has_run()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["scorers.teacher.kind=token_logprob"], "scorers has 0 tables of kind teacher"),
        (
            ["scorers.teacher.kind=teacher", "scorers.other.kind=teacher"],
            r"scorers has 2 tables of kind teacher \(teacher, other\)",
        ),
        (["scorers.teacher.kind=oracle"], "no teacher_server.scorers plug-in called 'oracle'"),
    ],
)
def test_a_run_has_one_teacher(run_in, overrides, words):
    with pytest.raises(InputError, match=words):
        run_in(*overrides)
