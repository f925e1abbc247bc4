"""Decoding by steps in C: the tokens of the layers, whoever shares the batch, whatever changes."""

import copy
import gc
from weakref import ref

import pytest
import torch
from building.layered import layered

from common.models.backbone import build_seeded
from common.models.backbones import llamagen
from common.models.cpu.native_steps import NativeSteps, library
from common.models.token_steps import _STEPS, token_steps
from common.spec import SequenceSpec
from learner.optimizer import OptimizerConfig, build_adamw
from rollout.sampler import SamplingConfig, sample

pytestmark = pytest.mark.skipif(library().library is None, reason=library().why)

SPEC = SequenceSpec(vocab_size=50, length=64, grid=(8, 8), num_classes=7)
SIZES = {"even": (64, 2, 32), "odd": (72, 6, 20), "wide heads": (160, 2, 32)}
"""Width, heads and what the feed-forward width is a multiple of: heads of 32, 12 and 80."""
LABEL_B = torch.tensor([1, 2, 3, 0, 5])
PREFIX_B = torch.tensor([0, 3, 30, 64, 41])
"""With one whole sequence, and such as join later."""
CELL_BL = torch.randint(50, (5, 64), generator=torch.Generator().manual_seed(0))
PLAIN = SamplingConfig()
HOWS = [{}, {"guidance": 2.0}, {"top_k": 9, "top_p": 0.8}, {"temperature": 0.7, "guidance": 1.5}]


def model_of(size, dtype=torch.float32):
    width, heads, multiple = SIZES[size]
    config = llamagen.Config(width=width, depth=2, heads=heads, multiple_of=multiple)
    found = build_seeded(config, SPEC, 0).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.15, generator=generator)
    return found.to(dtype)


def drawn_by(model, how, prefix_B=None, rows=slice(None)):
    given = {} if prefix_B is None else {"cell_BL": CELL_BL[rows], "prefix_B": prefix_B[rows]}
    sampling = SamplingConfig.model_validate(how)
    return sample(model, LABEL_B[rows], range(5)[rows], sampling, **given)


@pytest.mark.parametrize("how", HOWS, ids=str)
@pytest.mark.parametrize("prefix_B", [None, PREFIX_B], ids=["whole", "prefixes"])
@pytest.mark.parametrize("size", SIZES)
def test_float32_draws_the_tokens_of_the_layers(size, prefix_B, how):
    model = model_of(size)
    found, wanted = drawn_by(model, how, prefix_B), drawn_by(layered(model), how, prefix_B)
    assert isinstance(_STEPS[model], NativeSteps), "no step was lent"
    assert torch.equal(found.token_BL, wanted.token_BL)
    torch.testing.assert_close(found.logprob_BL, wanted.logprob_BL, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_a_row_is_the_same_to_the_bit_whoever_shares_the_batch(how):
    """Where no prefix is read, which is done by layers."""
    model = model_of("odd")
    together = drawn_by(model, how)
    for row in range(5):
        alone = drawn_by(model, how, rows=slice(row, row + 1))
        assert torch.equal(alone.token_BL[0], together.token_BL[row])
        assert torch.equal(alone.logprob_BL[0], together.logprob_BL[row])


def test_several_threads_give_the_same_bits():
    model = model_of("even")
    one, before = drawn_by(model, {"guidance": 2.0}), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        three = drawn_by(model, {"guidance": 2.0})
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one.logprob_BL, three.logprob_BL)


@pytest.mark.skipif(
    library().library is None or not library().library.multiplies_bf16(),
    reason="this CPU does not multiply bfloat16",
)
@pytest.mark.parametrize("prefix_B", [None, PREFIX_B], ids=["whole", "prefixes"])
def test_bfloat16_records_the_law_it_draws_from(prefix_B):
    model = model_of("odd", torch.bfloat16)
    found = drawn_by(model, {}, prefix_B)
    assert isinstance(_STEPS[model], NativeSteps), "no step was lent"
    logit = model.float()(LABEL_B, found.token_BL, found.plan)
    wanted = logit.log_softmax(-1).gather(-1, found.token_BL[..., None])[..., 0]
    free = found.logprob_BL != 0
    assert free.sum() > 100
    assert (found.logprob_BL - wanted)[free].abs().mean() < 0.02


def test_weights_changed_in_place_are_the_ones_that_decode():
    model, other = model_of("even"), model_of("even")
    drawn_by(model, {})
    steps = _STEPS[model]
    for parameter, its in zip(model.parameters(), other.parameters(), strict=True):
        torch.nn.init.normal_(its, std=0.1)
        parameter.copy_(its)
    found, wanted = drawn_by(model, {}), drawn_by(other, {})
    assert _STEPS[model] is steps, "packed into other memory"
    assert torch.equal(found.logprob_BL, wanted.logprob_BL)
    model.head.weight = torch.nn.Parameter(other.head.weight * 2, requires_grad=False)
    other.head.weight.mul_(2)
    assert torch.equal(drawn_by(model, {}).logprob_BL, drawn_by(other, {}).logprob_BL)


@pytest.mark.parametrize("to", [torch.bfloat16, torch.float32], ids=str)
def test_a_model_that_was_cast_is_packed_anew(to):
    """Into room of another size."""
    model = model_of("even", torch.float32 if to == torch.bfloat16 else torch.bfloat16)
    drawn_by(model, {})
    model.to(to)
    assert torch.equal(
        drawn_by(model, {}).logprob_BL, drawn_by(copy.deepcopy(model), {}).logprob_BL
    )


def test_codes_and_classes_that_do_not_exist_are_refused():
    model = model_of("even")
    with pytest.raises(IndexError):
        sample(model, torch.tensor([8]), [0], PLAIN)
    late = torch.full((2, 64), 50)
    with pytest.raises(IndexError):
        sample(model, LABEL_B[:2], [0, 1], PLAIN, cell_BL=late, prefix_B=torch.tensor([0, 2]))


def test_what_was_not_cached_yet_is_never_looked_at():
    """A step costs what there is, not what there is room for."""
    model = model_of("odd")
    plan, token_B1 = model.plan(range(2)), torch.tensor([[7], [9]])
    with torch.no_grad(), token_steps(model, 64, 2):
        state = model.begin(LABEL_B[:2], plan)
        model.predict(state)
        for key, value in _STEPS[model]._caches:
            key[:, :, 1:], key[..., 1:], value[:, :, 1:] = torch.nan, torch.nan, torch.nan
        model.commit(state, token_B1)
        found = model.predict(state)[:, 0]
    token_BL = torch.zeros(2, 64, dtype=torch.long)
    token_BL[:, :1] = token_B1
    wanted = model(LABEL_B[:2], token_BL, plan)[:, 1]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_steps_serve_one_decoding_at_a_time():
    model = model_of("even")
    with torch.no_grad(), token_steps(model, 64, 2):
        plan = model.plan(range(2))
        model.predict(model.begin(LABEL_B[:2], plan))
        with pytest.raises(ValueError, match="one decoding at a time"):
            model.predict(model.begin(LABEL_B[:2], plan))


def of_another_class(model):
    class Block(llamagen.CausalBlock):
        pass

    model.layers[1].__class__ = Block


def watched(model):
    model.layers[0].attention.register_forward_hook(lambda module, given, out: 2 * out)


def wrapped(model):
    model.layers[0].attention.wqkv = torch.nn.Sequential(model.layers[0].attention.wqkv)


def with_a_bias(model):
    model.head.bias = torch.nn.Parameter(torch.randn(50), requires_grad=False)


def with_another_eps(model):
    model.layers[0].ffn_norm.eps = 1.0


def strided(model):
    table = model.tok_embeddings.weight
    model.tok_embeddings.weight = torch.nn.Parameter(table.mT.contiguous().mT, requires_grad=False)


CHANGES = [of_another_class, watched, wrapped, with_a_bias, with_another_eps, strided]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_other_layers_than_ours_decode_by_themselves(change):
    model = model_of("even")
    drawn_by(model, {})
    change(model)
    found, wanted = drawn_by(model, {}), drawn_by(layered(model), {})
    assert torch.equal(found.token_BL, wanted.token_BL)


def test_fused_updates_of_an_optimizer_are_seen():
    """Which torch does not count by itself on a CPU."""
    model = model_of("even").requires_grad_(True)
    drawn_by(model, {})
    optimizer = build_adamw(OptimizerConfig(), dict(model.named_parameters()))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    found, wanted = drawn_by(model, {}), drawn_by(copy.deepcopy(model), {})
    assert torch.equal(found.logprob_BL, wanted.logprob_BL)


def test_what_was_there_before_is_not_kept_alive():
    model = model_of("even")
    drawn_by(model, {})
    before = ref(model.norm.weight)
    model.load_state_dict(model_of("even").state_dict(), assign=True)
    gc.collect()
    assert before() is None


def test_another_rotary_table_is_not_the_one_that_is_read():
    model = model_of("even")
    wanted = drawn_by(model, {})
    model._rotary.on(torch.device("meta"))
    gc.collect()
    assert torch.equal(drawn_by(model, {}).logprob_BL, wanted.logprob_BL)


def test_an_odd_feed_forward_width_goes_without_bfloat16():
    config = llamagen.Config(width=20, depth=2, heads=1, multiple_of=1)
    model = build_seeded(config, SPEC, 0).eval().bfloat16()
    assert model.layers[0].feed_forward.w2.in_features % 2
    drawn_by(model, {})
    assert model not in _STEPS
    drawn_by(model.float(), {})
    assert model in _STEPS


def test_more_rows_than_there_is_room_for_are_refused():
    model = model_of("even")
    with torch.no_grad(), token_steps(model, 64, 2), pytest.raises(ValueError, match="room is for"):
        model.predict(model.begin(LABEL_B, model.plan(range(5))))


def test_labels_of_another_integer_type_are_read():
    model = model_of("even")
    found = sample(model, LABEL_B.int(), range(5), PLAIN)
    assert torch.equal(found.logprob_BL, drawn_by(model, {}).logprob_BL)


def test_other_defaults_of_torch_change_nothing():
    model = model_of("even")
    wanted = drawn_by(model, {})
    torch.set_default_dtype(torch.float64)
    try:
        found = drawn_by(copy.deepcopy(model), {})
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found.token_BL, wanted.token_BL)
    torch.testing.assert_close(found.logprob_BL.float(), wanted.logprob_BL)


def test_a_state_of_a_decoding_that_is_over_is_refused():
    model = model_of("even")
    plan = model.plan(range(2))
    with torch.no_grad():
        with token_steps(model, 64, 2):
            state = model.begin(LABEL_B[:2], plan)
            model.predict(state)
        model.commit(state, torch.zeros(2, 1, dtype=torch.long))
        with token_steps(model, 64, 2), pytest.raises(ValueError, match="is over"):
            model.predict(state)


def test_nothing_is_kept_of_a_decoding_but_weights():
    model = model_of("even")
    drawn_by(model, {}, PREFIX_B)
    steps = _STEPS[model]
    assert (steps.owner, model.token_steps, steps._caches) == (None, None, [])
