"""How rewards of whole rows become advantages: of groups, whatever else the step holds."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from building.objectives import Company
from building.tables import rollouts

from common.errors import InputError
from learner.process_group import SingleProcess
from learner.rewards import PATIENCE, AdvantageConfig, advantages, read, remember

G, ROWS, L = 4, 24, 5
WEIGHTS = {"sharp": 2.0, "kind": 0.5}
STDS = [AdvantageConfig(std="group", clip=1.2), AdvantageConfig(std="batch"), AdvantageConfig()]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    numbers = {name: torch.randn(ROWS, generator=generator) for name in WEIGHTS}
    slots = {name: torch.randn(ROWS, L, generator=generator) for name in WEIGHTS}
    token_BL = torch.zeros(ROWS, L).long()
    return rollouts(token_BL, token_BL.float(), 3, group=G, sequence=numbers, signal=slots)


def found_in(batch, config, ranks=None, per_token=False):
    rewards = read(batch, WEIGHTS, per_token=per_token)
    return advantages(config, rewards, ranks or SingleProcess())


def test_a_row_is_compared_with_its_group(batch):
    """Against the formulas, one group at a time."""
    total_KG = (2.0 * batch.sequence["sharp"] + 0.5 * batch.sequence["kind"]).view(-1, G).double()
    centred_KG = total_KG - total_KG.mean(1, keepdim=True)
    of_group = centred_KG / (total_KG.std(1, keepdim=True) + 1e-8)
    spread = (centred_KG.square().sum() / (ROWS - ROWS // G)).sqrt()
    for config, wanted_KG in (
        (AdvantageConfig(std="none"), centred_KG),
        (AdvantageConfig(std="group"), of_group),
        (AdvantageConfig(std="group", clip=0.7), of_group.clamp(-0.7, 0.7)),
        (AdvantageConfig(std="batch"), centred_KG / (spread + 1e-8)),
    ):
        found_B = found_in(batch, config)
        torch.testing.assert_close(found_B.double().view(-1, G), wanted_KG, atol=1e-6, rtol=1e-5)


def shuffled(batch, order_B):
    columns = {
        name: {key: value[order_B] for key, value in getattr(batch, name).items()}
        for name in ("sequence", "signal")
    }
    groups = {"group_B": batch.group_B[order_B], "member_B": batch.member_B[order_B]}
    return replace(batch, id_B=batch.id_B[order_B], **columns, **groups)


@pytest.mark.parametrize("config", STDS)
@pytest.mark.parametrize("per_token", [False, True])
def test_neither_order_nor_ranks_change_an_advantage(batch, config, per_token):
    wanted = found_in(batch, config, per_token=per_token)
    order_B = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    found = found_in(shuffled(batch, order_B), config, per_token=per_token)
    torch.testing.assert_close(found, wanted[order_B], atol=1e-6, rtol=1e-6)
    shared, barrier = {}, threading.Barrier(2)
    halves = [batch.rows(slice(0, 8)), batch.rows(slice(8, ROWS))]
    ranks = [Company(rank, shared, barrier) for rank in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        parts = pool.map(lambda n: found_in(halves[n], config, ranks[n], per_token), (0, 1))
        found = torch.cat(list(parts))
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)


def test_credits_have_the_rewards_mean_and_less_noise():
    """Each slot's share depends on its own code alone: same expected gradient direction."""
    generator = torch.Generator().manual_seed(3)
    share_BL = torch.randn(4000, L, generator=generator)
    score_BL = torch.randn(4000, L, generator=generator) + share_BL  # d log q / d theta of a slot
    token_BL = torch.zeros(4000, L).long()
    batch = rollouts(
        *(token_BL, token_BL.float(), 3),
        group=G,
        sequence={"near": share_BL.sum(1)},
        signal={"near": share_BL},
    )
    gradient = {}
    for per_token in (False, True):
        rewards = read(batch, {"near": 1.0}, per_token=per_token)
        of_row = advantages(AdvantageConfig(std="none"), rewards, SingleProcess())
        gradient[per_token] = (of_row.view(len(batch), -1) * score_BL).sum(1).double()
    whole, local = gradient[False], gradient[True]
    error = (whole.var() / len(whole) + local.var() / len(local)).sqrt()
    assert abs(whole.mean() - local.mean()) < 4 * error
    assert whole.var() > 2 * local.var()


def test_what_failed_takes_its_group_with_it_and_nothing_else(batch):
    failed_B = torch.zeros(ROWS)
    failed_B[5] = 1
    spoiled = replace(batch, sequence=batch.sequence | {"kind_failed": failed_B})
    config = AdvantageConfig(std="group")
    whole_B, found_B = found_in(batch, config), found_in(spoiled, config)
    assert (found_B[4:8] == 0).all()
    assert torch.equal(found_B[:4], whole_B[:4])
    assert torch.equal(found_B[8:], whole_B[8:])
    rewards, state = read(spoiled, WEIGHTS, per_token=False), {}
    assert rewards.kept_B.tolist() == [not 4 <= row < 8 for row in range(ROWS)]
    remember(state, spoiled, rewards, WEIGHTS, SingleProcess())
    kept_B = rewards.kept_B
    assert state["reward/groups_left_out"] == 1
    for name in WEIGHTS:
        assert state[f"reward/{name}"] == pytest.approx(float(batch.sequence[name][kept_B].mean()))
    assert state["reward/mean"] == pytest.approx(
        2 * state["reward/sharp"] + state["reward/kind"] / 2
    )
    total_KG = rewards.total_B.view(-1, G)[rewards.kept_K]
    assert state["reward/group_std"] == pytest.approx(float(total_KG.std(1).mean()))
    assert state["reward/constant_groups"] == 0


def test_groups_are_constant_where_nothing_is_learned_from_them(batch):
    """By row where rows are credited, by slot where slots are: equal sums may hide what differs."""
    same = {name: torch.arange(ROWS // G).repeat_interleave(G).float() for name in WEIGHTS}
    found = {}
    for slots, per_token in ((batch.signal, False), (batch.signal, True), ({}, True)):
        alike_BL = torch.ones(ROWS, L)
        signal = slots or dict.fromkeys(WEIGHTS, alike_BL)
        constant = replace(batch, sequence=same, signal=signal)
        rewards, state = read(constant, WEIGHTS, per_token=per_token), {}
        remember(state, constant, rewards, WEIGHTS, SingleProcess())
        found[bool(slots), per_token] = state["reward/constant_groups"]
        learned = advantages(AdvantageConfig(), rewards, SingleProcess())
        assert bool((learned == 0).all()) == (state["reward/constant_groups"] == 1)
    assert found == {(True, False): 1, (True, True): 0, (False, True): 1}


def test_a_step_without_judged_rows_says_nothing_of_an_earlier_one(batch):
    state = {}
    remember(state, batch, read(batch, WEIGHTS, per_token=False), WEIGHTS, SingleProcess())
    assert "reward/mean" in state
    assert "reward/sharp" in state
    of_data = replace(batch, policy=("data",) * ROWS)
    remember(state, of_data, read(of_data, WEIGHTS, per_token=False), WEIGHTS, SingleProcess())
    assert state == {"reward/groups_left_out": 0, "reward/steps_without": 0}


def test_rewards_that_always_fail_end_the_run(batch):
    failed = {"sharp_failed": torch.ones(ROWS)}
    spoiled = replace(batch, sequence=batch.sequence | failed, facts={"failure.sharp": "no idea"})
    rewards, state = read(spoiled, WEIGHTS, per_token=False), {}
    for _ in range(PATIENCE - 1):
        remember(state, spoiled, rewards, WEIGHTS, SingleProcess())
    kept = read(batch, WEIGHTS, per_token=False)
    remember(state, batch, kept, WEIGHTS, SingleProcess())  # one good step, and all is forgotten
    for _ in range(PATIENCE - 1):
        remember(state, spoiled, rewards, WEIGHTS, SingleProcess())
    with pytest.raises(InputError, match=r"failed in every group, .* \(sharp: no idea\); mend"):
        remember(state, spoiled, rewards, WEIGHTS, SingleProcess())


def test_credits_that_nobody_gives_are_asked_for_by_name(batch):
    bare = replace(batch, signal={})
    with pytest.raises(InputError, match="say nothing of sharp by slot; set per_token"):
        read(bare, WEIGHTS, per_token=True)
