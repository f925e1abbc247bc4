"""LlamaGen against outputs of the official implementation (skips where the fixtures are absent)."""

import json

import pytest
import torch
from safetensors.torch import load_file

from common.backbone import SequenceSpec
from common.backbones.llamagen import Config
from common.guidance import guide
from rollout.sampler import SamplingConfig, filtered_logprob


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden" / "llamagen"
    facts = json.loads((folder / "config.json").read_text())
    return facts, load_file(folder / "weights.safetensors"), load_file(folder / "io.safetensors")


@pytest.fixture(params=[4, 8])
def case(request, golden):
    facts, weights, tensors = golden
    arguments, side = facts["model_args"], request.param
    spec = SequenceSpec(
        arguments["vocab_size"], side * side, (side, side), arguments["num_classes"]
    )
    model = Config(
        width=arguments["dim"],
        depth=arguments["n_layer"],
        heads=arguments["n_head"],
        multiple_of=arguments["multiple_of"],
    ).build(spec)
    model.load_state_dict(weights)
    own = {k.partition(".")[2]: v for k, v in tensors.items() if k.startswith(f"g{side}.")}
    return model.eval(), own


def test_teacher_forced_logits_and_loss(case):
    model, own = case
    plan = model.plan(2)
    logit_BLV = model(own["labels"], own["tokens"], plan)
    torch.testing.assert_close(logit_BLV, own["tf_logits"], atol=1e-4, rtol=0)
    null_B = torch.full_like(own["labels"], model.spec.null_class)
    null_BLV = model(null_B, own["tokens"], plan)
    torch.testing.assert_close(null_BLV, own["tf_logits_null"], atol=1e-4, rtol=0)
    loss = torch.nn.functional.cross_entropy(logit_BLV.flatten(0, 1), own["tokens"].flatten())
    torch.testing.assert_close(loss[None], own["loss"], atol=1e-5, rtol=0)
    loss.backward()
    for name, value in own.items():
        if name.startswith("grad."):
            found = model.get_parameter(name.removeprefix("grad.")).grad
            torch.testing.assert_close(found, value, atol=1e-3 * float(value.abs().max()), rtol=0)


@torch.no_grad()
def test_cached_decoding_logits(case):
    model, own = case
    state = model.begin(own["labels"], model.plan(2))
    logits = []
    for slot in range(model.spec.length):
        logits.append(model.predict(state))
        model.commit(state, own["tokens"][:, slot : slot + 1])
    torch.testing.assert_close(torch.cat(logits, 1), own["kv_logits"], atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_greedy_guided_sequences(case, scale):
    model, own = case
    labels = torch.cat([own["labels"], torch.full_like(own["labels"], model.spec.null_class)])
    state = model.begin(labels, model.plan(4))
    for _ in range(model.spec.length):
        logit = guide(*model.predict(state).chunk(2), scale)
        model.commit(state, logit.argmax(-1).repeat(2, 1))
    assert torch.equal(state.token_BL[:2].int(), own[f"greedy_cfg{scale}.tokens"])


def test_filtered_probabilities(golden):
    facts, _, tensors = golden
    for index, combination in enumerate(facts["filter_combos"]):
        sampling = SamplingConfig.model_validate(combination)
        found = filtered_logprob(tensors["filter.logits"][:, None], sampling).exp()[:, 0]
        expected = tensors[f"filter.probs_{index}"]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        assert torch.equal(found == 0, expected == 0)
