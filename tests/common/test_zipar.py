"""ZipAR: the rule, the cached decoder against a slow masked pass, mixed rollouts, the record."""

import pytest
import torch
from zipar_pass import reference, simulate

from common.data.tokens import TokenDataset
from common.exchange.packed_weights import pack
from common.exchange.schedule import Lease, Schedule
from common.exchange.trajectory import from_arrow
from common.exchange.weights import Weights
from common.models.backbones import llamagen
from common.models.plan import ZipARConfig, zipar_plan
from common.randomness import Draws
from common.spec import SequenceSpec
from rollout.config import RolloutConfig
from rollout.context import ContextsConfig
from rollout.sampler import SamplingConfig, decode, draw, noise
from rollout.worker import RolloutWorker

SPEC = SequenceSpec(vocab_size=24, length=30, grid=(5, 6), num_classes=3)
ROW_STARTS = ("prev_prev_last", "left_above", "zero")


@pytest.fixture
def model(tiny):
    return tiny("llamagen", spec=SPEC)


def sampling_of(guidance=None, **zipar):
    decoding = llamagen.Decoding(zipar=ZipARConfig(**zipar) if zipar else None)
    return SamplingConfig.model_validate({"decoding": decoding, "guidance": guidance})


def roll(model, sampling, prefixes=(0, 0, 0), seed=0):
    """Three sequences behind prefixes of the same random data."""
    generator = torch.Generator().manual_seed(seed)
    return decode(
        model,
        torch.tensor([0, 1, SPEC.null_class]),
        sampling=sampling,
        noise_BL=noise([1, 2, 3], SPEC.length),
        plan=model.plan([1, 2, 3], sampling.decoding),
        given_BL=torch.randint(SPEC.vocab_size, (3, SPEC.length), generator=generator),
        prefix_B=torch.tensor(prefixes),
    )


@pytest.mark.parametrize("grid", [(5, 6), (1, 4), (4, 1), (6, 3)])
@pytest.mark.parametrize("serial", [False, True])
def test_the_plan_is_the_rule_behind_every_prefix(grid, serial):
    length = grid[0] * grid[1]
    for window in (1, 2, 4, 6, 9):
        for given in range(length + 1):
            zipar = ZipARConfig(window=window, serial_first_row=serial)
            plan = zipar_plan(2, grid, zipar, given)
            wanted = [[cell] for cell in range(given)] + simulate(grid, zipar, given)
            assert plan.step_sizes == tuple(map(len, wanted))
            assert plan.order_BL.tolist() == [[c for step in wanted for c in step]] * 2
            if window >= grid[1]:
                assert plan.order_BL[0].tolist() == list(range(length))
                assert plan.is_sequential


@torch.no_grad()
@pytest.mark.parametrize("prefixes", [(0, 0, 0), (9, 14, 30), (30, 30, 30)])
@pytest.mark.parametrize("guidance", [None, 2.0])
def test_a_window_of_the_width_is_raster_to_the_bit(model, prefixes, guidance):
    raster = roll(model, sampling_of(guidance), prefixes)
    wide = roll(model, sampling_of(guidance, window=6), prefixes)
    assert torch.equal(wide.token_BL, raster.token_BL)
    assert torch.equal(wide.logprob_BL, raster.logprob_BL)
    if min(prefixes) < 18:
        narrow = roll(model, sampling_of(guidance, window=2), prefixes)
        assert not torch.equal(narrow.token_BL, raster.token_BL)


@torch.no_grad()
@pytest.mark.parametrize("row_start", ROW_STARTS)
@pytest.mark.parametrize("mask", [True, False])
def test_cached_decoding_equals_the_slow_masked_pass(model, row_start, mask):
    class_B = torch.tensor([0, 1, SPEC.null_class])
    for window, serial, given in (
        (1, False, 0),
        (2, False, 0),
        (2, True, 0),
        (2, False, 8),
        (3, False, 13),
    ):
        zipar = {
            "window": window,
            "serial_first_row": serial,
            "row_start": row_start,
            "mask_undecoded": mask,
        }
        decoded = roll(model, sampling_of(**zipar), (given, given + 7, given))
        found = reference(model, class_B, decoded.token_BL, ZipARConfig(**zipar), given)
        drawn = decoded.logprob_BL != 0
        assert int(drawn.sum()) == 3 * SPEC.length - 3 * given - 7
        torch.testing.assert_close(
            decoded.logprob_BL[drawn], found[drawn], atol=1e-4, rtol=1e-4, msg=str(zipar)
        )


@torch.no_grad()
def test_every_choice_matters(model):
    found = [
        roll(model, sampling_of(window=2, row_start=rule, mask_undecoded=mask)).logprob_BL
        for rule in ROW_STARTS
        for mask in (True, False)
    ]
    for at, one in enumerate(found):
        for other in found[:at]:
            assert not torch.allclose(one, other)


@torch.no_grad()
@pytest.mark.parametrize("mask", [True, False])
def test_undecoded_places_have_no_influence_when_masked(model, mask):
    """Steps are replayed with garbage in every place that no true input has written yet."""
    zipar = ZipARConfig(window=2, mask_undecoded=mask)
    plan = zipar_plan(1, SPEC.grid, zipar)
    token_BL = torch.randint(24, (1, 30), generator=torch.Generator().manual_seed(3))
    class_B = torch.tensor([1])
    clean, dirty = (model.begin(class_B, plan) for _ in range(2))
    fed_L = torch.cat([torch.tensor([0]), plan.step_L[plan.order_BL[0].argsort()][:-1] + 1])
    same = []
    for step in range(len(plan.step_sizes)):
        for cache in dirty.cache.layers if step else ():
            cache.key_BHSD[:, :, fed_L >= step] = 5.0
            cache.value_BHSD[:, :, fed_L >= step] = -7.0
        same.append(torch.equal(model.predict(clean), model.predict(dirty)))
        for state in (clean, dirty):
            model.commit(state, token_BL[:, state.slots])
    assert all(same) == mask


@torch.no_grad()
def test_prefixes_stay_and_sequences_do_not_depend_on_their_company(model):
    sampling = sampling_of(window=2, row_start="left_above")
    generator = torch.Generator().manual_seed(0)
    given_BL = torch.randint(24, (3, 30), generator=generator)
    decoded = roll(model, sampling, (8, 20, 8))
    prefix = torch.arange(30) < torch.tensor([8, 20, 8])[:, None]
    assert torch.equal(decoded.token_BL[prefix], given_BL[prefix])
    assert ((decoded.logprob_BL == 0) == prefix).all()
    alone = decode(
        model,
        torch.tensor([3]),
        sampling=sampling,
        noise_BL=noise([3], 30),
        plan=model.plan([3]),
        given_BL=given_BL[2:],
        prefix_B=torch.tensor([8]),
    )
    assert torch.equal(alone.token_BL[0], decoded.token_BL[2])


@torch.no_grad()
def test_guided_draws_are_the_guided_distribution(model):
    """Both halves of the doubled batch are fed the same tokens in the same steps; every cell has
    its own uniform, whenever it is drawn."""
    decoded = roll(model, sampling_of(2.0, window=2))
    plan = zipar_plan(3, SPEC.grid, ZipARConfig(window=2))
    labels = torch.tensor([0, 1, 3]), torch.full((3,), SPEC.null_class)
    states = [model.begin(class_B, plan) for class_B in labels]
    for step in range(len(plan.step_sizes)):
        with_class, without = (model.predict(state) for state in states)
        cells = plan.order_BL[:, plan.slots(step)]
        token_Bn = decoded.token_BL.gather(1, cells)
        guided = (without + 2 * (with_class - without)).log_softmax(-1)
        chosen = guided.gather(-1, token_Bn[..., None])[..., 0]
        wanted = decoded.logprob_BL.gather(1, cells)
        assert torch.equal(draw(guided, noise([1, 2, 3], 30).gather(1, cells)), token_Bn)
        torch.testing.assert_close(chosen, wanted, atol=1e-4, rtol=1e-4)
        for state in states:
            model.commit(state, token_Bn)


class Fixed:
    """Version 0 is all there is; scored records are kept."""

    def __init__(self, model):
        self.weights = Weights.of(0, pack(model, torch.float32))

    def newest(self, timeout):
        return 0

    def get(self, version, timeout):
        return self.weights


def test_a_worker_records_zipar_samples_in_raster_order(model):
    generator = torch.Generator().manual_seed(1)
    data = TokenDataset(
        torch.randint(24, (40, 1, 30), generator=generator),
        torch.randint(3, (40,), generator=generator),
        *(SPEC, ("a", "b", "c"), "none"),
    )
    sources = {"student": {"ratio": 1.0, "min_prefix": 0.1, "max_prefix": 0.5}}
    worker = RolloutWorker(
        RolloutConfig(batch_size=4, sampling=sampling_of(window=2), keep_noise=True),
        ContextsConfig.model_validate({"sources": sources}),
        llamagen.Config.tiny(),
        name="w",
        schedule=Schedule(
            steps=10, global_batch_size=8, lease_size=4, max_staleness=2, publish_every=1
        ),
        draws=Draws(0, len(data)),
        data=data,
        scorers=None,
        weights=Fixed(model),
        ledger=None,
    )
    batch = from_arrow(worker.sample(Lease(0, 0, 4, 0, None, 1)))
    assert batch.plan.step_sizes == (1,) * 30
    assert torch.equal(batch.plan.order_BL, torch.arange(30).expand(4, -1))
    given, zipar = int(batch.prefix_B.min()), ZipARConfig(window=2)
    with torch.no_grad():
        drawn = reference(model, batch.label_B, batch.token_BL, zipar, given)
        raster = model(batch.label_B, batch.token_BL, batch.plan).log_softmax(-1)
    suffix = batch.suffix_BL
    torch.testing.assert_close(batch.logprob_BL[suffix], drawn[suffix], atol=1e-4, rtol=1e-4)
    raster = raster.gather(-1, batch.token_BL[..., None])[..., 0]
    assert not torch.allclose(batch.logprob_BL[suffix], raster[suffix], atol=1e-3)
    seeds = map(Draws(0, len(data)).noise_seed, range(4))
    assert torch.equal(batch.noise_BL, noise(list(seeds), 30))
