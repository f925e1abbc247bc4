"""Several samples of one condition: what a group shares, what is each sample's own, and a run."""

import json

import pytest
import torch
from building.samplers import Unchanging, tokens_of

from common.config.plugins import kinds, load_plugin
from common.errors import InputError
from common.exchange.schedule import Lease, Schedule
from common.exchange.trajectory import from_arrow
from common.randomness import Draws
from deploy.run_folder.identity import Identity
from deploy.stages.distill import distill
from rollout.config import RolloutConfig
from rollout.context import ContextsConfig
from rollout.worker import RolloutWorker

THIRD = {"min_prefix": 0.25, "max_prefix": 0.75}


@pytest.fixture
def sampled_by(tiny, data):
    def build(kind, size, first=0, count=12):
        family, student = load_plugin("common.models.backbones", kind).Config.tiny(), tiny(kind, 1)
        tokens = tokens_of(student.spec, data)
        schedule = Schedule(9, 12, 12, 2, 1, group_size=size)
        sources = {"data": {}, "student": {"ratio": 3, **THIRD}}
        keep = Unchanging(student)
        worker = RolloutWorker(
            RolloutConfig(batch_size=12, class_dropout=0.4, keep_target=size > 1),
            ContextsConfig.model_validate({"mix_per": "sample", "sources": sources}),
            family,
            name="w",
            schedule=schedule,
            draws=Draws(3, len(tokens)),
            data=tokens,
            scorers=keep,
            weights=keep,
            ledger=keep,
        )
        return from_arrow(worker.sample(Lease(0, first, count, 0, None, 1)))

    return build


@pytest.mark.parametrize("kind", kinds("common.models.backbones"))
def test_a_group_shares_its_condition_and_each_sample_has_its_own_noise(sampled_by, kind):
    batch, alone = sampled_by(kind, 3), sampled_by(kind, 1)
    assert batch.group_B.tolist() == [n // 3 for n in range(12)]
    assert batch.member_B.tolist() == [n % 3 for n in range(12)]
    assert batch.id_B.tolist() == list(range(12))
    conditions = torch.arange(12) // 3
    for name in ("label_B", "prefix_B"):
        assert torch.equal(getattr(batch, name), getattr(alone, name)[conditions]), name
    assert torch.equal(batch.plan.order_BL, alone.plan.order_BL[conditions])
    assert batch.context == tuple(alone.context[n] for n in conditions.tolist())
    given_BL = ~batch.suffix_BL
    assert torch.equal(batch.token_BL[given_BL], alone.token_BL[conditions][given_BL])
    drawn = [n for n in range(0, 12, 3) if batch.context[n] == "student"]
    assert drawn
    assert any(not torch.equal(batch.token_BL[n], batch.token_BL[n + 1]) for n in drawn)
    read_BL = batch.plan.to_grid(torch.where(given_BL, batch.token_BL, -1))
    target_BL = batch.plan.to_grid(batch.target_BL)
    assert torch.equal(read_BL[read_BL >= 0], target_BL[read_BL >= 0]), "it goes on as it began"
    assert len(target_BL.unique(dim=0)) == 4, "one data row for each group"
    assert alone.target_token_BL is None
    assert alone.group_B is None, "groups of one leave the record as it is"


def test_a_size_that_does_not_divide_the_lease_is_refused(run_in):
    with pytest.raises(InputError, match=r"multiple of rollout\.group\.size 3, so that a group"):
        run_in("rollout.group.size=3")


def test_a_run_with_pairs_trains_whole_pairs_and_repeats_to_the_bit(run_in, quiet):
    losses = {}
    for name, size in (("alone", 1), ("pairs", 2), ("again", 2)):
        how = ("learner.ordered=true", f"rollout.group.size={size}", "learner.micro_batch=3")
        config, workspace = run_in(*how, name=name)
        facts = distill(config, workspace, quiet, local=True)
        assert facts["steps"] == config.learner.steps
        lines = (workspace.root / "metrics.jsonl").read_text().splitlines()
        losses[name] = [json.loads(line)["loss"] for line in lines]
    assert losses["pairs"] == losses["again"] != losses["alone"]


def test_snapshots_from_before_groups_go_on_with_groups_of_one():
    before = {"fields": {"seed": 0}, "contents": {}}
    for size, differences in ((1, []), (2, [("rollout.group.size", "was 1, is 2")])):
        now = Identity({"seed": 0, "rollout.group.size": size}, {}, {})
        assert list(now.differences(before)) == differences
