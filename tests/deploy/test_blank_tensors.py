"""The roles' own code on tensors without content: what it holds, and what it is told."""

from pathlib import Path

import pytest
import torch

from common.config.plugins import load_plugin
from common.exchange.adjacent import lay_together
from common.models.backbone import build_seeded
from common.models.cpu import native_steps
from common.models.key_value_cache import KeyValueCache
from common.models.layers import CausalAttention
from common.spec import SequenceSpec
from deploy.planning.blank_tensors import META, Kernels, Meter, peak_bytes
from deploy.planning.memory import learning_bytes, scoring_bytes
from deploy.planning.sampling_memory import decoding_bytes
from deploy.planning.skeletons import skeleton, state_bytes
from deploy.run_folder.opening import open_run


@pytest.fixture
def blank():
    with Kernels(torch.float32), Meter() as meter:
        yield meter


def test_what_is_computed_from_a_blank_tensor_is_blank(blank):
    wide, narrow = torch.zeros(3, 4, device=META), torch.arange(3)
    assert (wide * narrow[:, None]).is_meta
    assert wide.index_select(0, narrow).shape == (3, 4)
    assert wide[narrow < 2].shape == (2, 4), "a mask with content is told by its content"
    assert wide.to("cpu").is_meta
    assert wide.to("cpu", torch.float64).dtype == torch.float64


def test_what_has_content_keeps_it(blank):
    narrow = torch.arange(3.0)
    narrow += torch.ones(3, device=META)
    narrow[1:] = torch.zeros(2, device=META)
    assert narrow.tolist() == [0, 1, 2]


def test_every_value_that_is_asked_for_is_one(blank):
    wide = torch.zeros(2, 2, device=META)
    assert bool(torch.isfinite(wide).all())
    assert wide.sum().item() == 1.0
    assert wide.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert (wide == 0).nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert wide[wide != 0].shape == (4,)


def test_equal_operands_give_a_result_of_their_own():
    """Its shape is remembered, not the tensor; a view stays a view and takes nothing."""
    value = torch.zeros(8, 8, device=META)

    def twice():
        return value + 1, value + 1, value.double() + 1, value[1:], value[1:]

    assert peak_bytes(twice) == 2 * value.nbytes + 2 * 2 * value.nbytes


def runs(config, kind):
    scales = (1, 2, 3, 4) if kind == "var" else ()
    spec = SequenceSpec(512, 30 if scales else 16, (4, 4), 10, scales)
    model = build_seeded(load_plugin("common.models.backbones", kind).Config.tiny(), spec, 0)
    return {
        "decoding": lambda model: decoding_bytes(config, model.eval()),
        "scoring": lambda model: scoring_bytes(config, model.eval(), model.head),
        "learning": lambda model: learning_bytes(config, model.train(), model.head),
    }, model


@pytest.mark.parametrize("kind", ["llamagen", "var", "arpg"])
@pytest.mark.parametrize("role", ["decoding", "scoring", "learning"])
def test_the_same_code_with_content_holds_as_much(kind, role):
    """Both sides are counted by tensor; attention's kernels keep something of their own."""
    overrides = ["rollout.batch_size=8", "learner.micro_batch=8", "learner.chunk_tokens=64"]
    config, _ = open_run(Path("smoke"), [*overrides, "learner.global_batch_size=16"])
    run, model = runs(config, kind)
    lay_together(model.parameters())  # as the learner would: it takes the place of what was there
    with_content = run[role](model)
    blank = run[role](model.to(META))
    assert blank == pytest.approx(with_content, rel=0.05)


@pytest.mark.parametrize(("on_cpu", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_blank_tensors_are_kept_as_those_of_their_device_are(on_cpu, dtype):
    with torch.device(META):
        layer, cache = CausalAttention(32, 2).bfloat16(), KeyValueCache(9)
        x_BnC, turn_nP2 = torch.zeros(3, 2, 32).bfloat16(), torch.zeros(2, 8, 2)
    peak_bytes(lambda: layer(x_BnC, turn_nP2, cache), on_cpu=on_cpu)
    assert cache.key_BHSD is not None
    assert cache.key_BHSD.dtype == dtype


def test_a_lease_in_bfloat16_takes_more_on_a_cpu():

    of = {"cpu": 0, "cuda": 0, "auto": 0}
    for device in of:
        config, _ = open_run(Path("smoke"), ["rollout.dtype=bfloat16", f"rollout.device={device}"])
        spec = SequenceSpec(512, 16, (4, 4), 10)
        model = build_seeded(config.models.student, spec, 0).to(META).bfloat16().eval()
        of[device] = decoding_bytes(config, model)
    assert of["auto"] == of["cpu"] > of["cuda"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_cache_that_grows_is_counted_as_large_as_it_becomes(device):
    """Although the first steps alone are walked through, which on a CPU have little cached."""
    ends = [f"contexts.sources.student.{end}_prefix=0" for end in ("min", "max")]
    config, _ = open_run(Path("smoke"), [*ends, f"rollout.device={device}"])
    spec = SequenceSpec(64, 256, (16, 16), 10)
    # Heads of 32 channels fill whole registers, which values of steps in C lie in.
    small = load_plugin("common.models.backbones", "llamagen").Config(width=64, depth=2, heads=2)
    models = [small, small.model_copy(update={"depth": small.depth + 2})]
    found = [decoding_bytes(config, skeleton(model, spec).eval()) for model in models]
    whole = 2 * 2 * config.rollout.batch_size * spec.length * small.width * 4
    more = found[1] - found[0]
    if device == "cpu" and native_steps.library().library is not None:
        weights = [state_bytes(skeleton(model, spec).layers) for model in models]
        norms = 2 * 2 * small.width * 4
        assert more == whole + weights[1] - weights[0] - norms, "packed once more, but for norms"
    else:
        assert more == whole
