"""Checks of the transformers' folders, at the tolerances of their READMEs."""

import json
import math
import re
from pathlib import Path

import torch
from golden import Golden
from golden_tokenizers import multiscale_tokenizer
from torch.nn import functional as F

from common.artifacts.model_file import ModelFile, official_state
from common.files.official import Checkpoint
from common.models.backbones import arpg, llamagen, var
from common.models.filters import filtered_logprob
from common.models.guidance import Guidance, guide
from common.models.layers import rotary_2d
from common.models.plan import DecodePlan, arpg_step_sizes
from common.spec import SequenceSpec
from rollout.sampler import SamplingConfig
from rollout.stepper import Stepper


def ignore(model):
    """Most callers do not want the model."""


def check_llamagen(golden, tmp_path, keep=ignore):
    arguments = golden.facts["model_args"]
    config = llamagen.Config(
        width=arguments["dim"],
        depth=arguments["n_layer"],
        heads=arguments["n_head"],
        multiple_of=arguments["multiple_of"],
    )
    for side in golden.facts["grids"]:
        spec = SequenceSpec(
            arguments["vocab_size"], side * side, (side, side), arguments["num_classes"]
        )
        model = restored(golden, config, spec, tmp_path)
        inner = model.layers[0].feed_forward.w1.out_features
        assert inner == golden.facts["ffn_hidden"]
        check_grid(golden, model, f"g{side}.", config.width // config.heads)
        keep(model)
    check_filters(golden, lambda c: SamplingConfig.model_validate(c))


def check_grid(golden, model, prefix, head_width):
    golden.close(f"{prefix}freqs_cis", rotary_2d(*model.spec.grid, head_width), atol=1e-6)
    labels, tokens = golden[f"{prefix}labels"], golden[f"{prefix}tokens"]
    plan = model.plan(range(len(labels)))
    check_teacher_forced(golden, model, prefix, labels, tokens, plan, tokens, model.layers, 1e-4)
    golden.gradients(f"{prefix}grad.", lambda name: model.get_parameter(name).grad)
    cached = cached_logits(model, labels, plan, tokens)
    golden.close(f"{prefix}kv_logits", cached, atol=1e-4)
    pattern = re.escape(prefix) + r"greedy_cfg([\d.]+)(?:_interval(\d+))?\.(tokens|raw_logits)"
    for name, scale, interval, what in golden.names(pattern):
        guidance = Guidance(scale=float(scale), interval=int(interval or -1))
        greedy, raw = greedy_decode(model, labels, plan, guidance)
        if what == "tokens":
            golden.equal(name, greedy)
        else:
            golden.close(name, raw[: len(golden[name])], atol=1e-4)


@torch.no_grad()
def cached_logits(model, labels, plan, tokens):
    """Logits of step-by-step decoding of given tokens (in plan order)."""
    state, parts = model.begin(labels, plan), []
    for step in range(len(plan.step_sizes)):
        parts.append(model.predict(state))
        model.commit(state, tokens[:, plan.slots(step)])
    return torch.cat(parts, 1)


@torch.no_grad()
def greedy_decode(model, labels, plan, guidance):
    """Argmax tokens of the product's guided stepper, and raw logits of both halves for them."""
    tokens = torch.zeros(plan.order_BL.shape, dtype=torch.long)
    stepper = Stepper(model, labels, guidance, plan, tokens)
    for step in range(len(plan.step_sizes)):
        chosen = stepper.logits().argmax(-1)
        tokens[:, plan.slots(step)] = chosen
        stepper.commit(chosen)
    both = torch.cat([labels, torch.full_like(labels, model.spec.null_class)])
    doubled = DecodePlan(plan.order_BL.repeat(2, 1), plan.step_sizes)
    raw = cached_logits(model, both, doubled, tokens.repeat(2, 1))
    # The rule on raw logits picks the same tokens: the stepper hides nothing.
    scales = guidance.scales(plan, model.guidance_rule)
    guided = [guide(*raw[:, plan.slots(step)].chunk(2), scale) for step, scale in enumerate(scales)]
    assert torch.equal(torch.cat(guided, 1).argmax(-1), tokens)
    return tokens, raw


def check_teacher_forced(golden, model, prefix, labels, tokens, plan, targets, blocks, atol):
    """Logits, hidden states, null logits, loss; gradients are left in the model."""
    hidden = []
    hooks = [block.register_forward_hook(lambda *a: hidden.append(a[-1])) for block in blocks]
    logits = model(labels, tokens, plan)
    for hook in hooks:
        hook.remove()
    golden.close(f"{prefix}tf_logits", logits, atol=atol)
    for name, index in golden.names(re.escape(prefix) + r"hidden_(\d+)"):
        golden.close(name, hidden[int(index)], atol=atol)
    null = torch.full_like(labels, model.spec.null_class)
    with torch.no_grad():
        golden.close(f"{prefix}tf_logits_null", model(null, tokens, plan), atol=atol)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    golden.close(f"{prefix}loss", loss[None], atol=1e-5)
    model.zero_grad()
    loss.backward()
    return hidden


def check_filters(golden, sampling):
    for index, combination in enumerate(golden.facts["filter_combos"]):
        logits = golden["filter.logits"]
        shaped = logits[:, None] if logits.ndim == 2 else logits
        found = filtered_logprob(shaped, sampling(combination)).exp().view_as(logits)
        golden.close(f"filter.probs_{index}", found, atol=1e-6)
        assert torch.equal(found == 0, golden[f"filter.probs_{index}"] == 0)


def restored(golden, config, spec, tmp_path, tokenizer=None):
    """Load the official file as a run would; what an export writes is what was read."""
    file = ModelFile(golden.weights, "models.teacher", config, spec, tokenizer or tmp_path)
    model = file.load()
    stale = (*model.official.ignored, "freqs_cis")
    checkpoint = Checkpoint(golden.weights)
    every = checkpoint.tensors(checkpoint.entries, finite=False)  # a mask holds infinities
    official, found = official_state(model), dict(every)
    for name, value in official.items():
        assert name in found or any(Path(name).match(p) for p in stale), name
        if name in found:
            assert torch.equal(value.to(found[name].dtype), found[name]), name
    head = file.head()
    assert torch.equal(head.weight, model.head.weight)
    return model


def check_arpg(golden, tmp_path, keep=ignore):
    arguments = golden.facts["model_args"]
    length = arguments["block_size"]
    side = math.isqrt(length)
    config = arpg.Config(
        width=arguments["dim"],
        depth=arguments["n_layer"],
        heads=arguments["n_head"],
        multiple_of=arguments["multiple_of"],
    )
    spec = SequenceSpec(arguments["vocab_size"], length, (side, side), arguments["num_classes"])
    model = restored(golden, config, spec, tmp_path)
    keep(model)
    golden.close("freqs_cis", rotary_2d(side, side, config.width // config.heads), atol=1e-6)
    labels, cells, order = golden["labels"], golden["tokens"], golden["order"]
    plan = DecodePlan(order, (1,) * length)
    tokens = cells.gather(1, order)
    decoders = model.layers
    blocks = [*decoders.self_dec, *decoders.cross_dec]
    hidden = check_teacher_forced(golden, model, "", labels, tokens, plan, tokens, blocks, 1e-4)
    for offset, part in ((0, "self"), (len(decoders.self_dec), "cross")):
        for name, index in golden.names(rf"hidden_{part}_(\d+)"):
            golden.close(name, hidden[offset + int(index)], atol=1e-4)
    rows = {"mask_token": lambda: model.embeddings.weight.grad[spec.vocab_size]}
    golden.gradients(
        "grad.", lambda name: rows[name]() if name in rows else model.get_parameter(name).grad
    )
    raster = DecodePlan(torch.arange(length).expand_as(cells), (1,) * length)
    with torch.no_grad():
        golden.close("tf_logits_raster", model(labels, cells, raster), atol=1e-4)
    for index, generation in enumerate(golden.facts["generation"]):
        check_generation(golden, model, f"gen{index}.", labels, generation)
    if (golden.folder / "schedules.json").exists():
        check_schedules(json.loads((golden.folder / "schedules.json").read_text()))


def check_generation(golden, model, prefix, labels, settings):
    length = model.spec.length
    sizes = arpg_step_sizes(length, settings["num_iter"], settings["sample_schedule"])
    golden.equal(f"{prefix}step_sizes", torch.tensor(sizes))
    order = golden[f"{prefix}order"].expand(len(labels), -1)
    plan = DecodePlan(order, sizes)
    rule = f"arpg_{settings['cfg_schedule']}"
    guidance = Guidance.model_validate({"scale": settings["guidance_scale"], "rule": rule})
    tokens, raw = greedy_decode(model, labels, plan, guidance)
    golden.close(f"{prefix}raw_logits", raw, atol=1e-4)
    golden.equal(f"{prefix}tokens", torch.empty_like(tokens).scatter(1, order, tokens))
    # One block-causal pass over the finished sequence is what cached generation computed.
    with torch.no_grad():
        scored = model(labels, tokens, plan)
    torch.testing.assert_close(scored, raw[: len(labels)], atol=1e-4, rtol=0)


def check_schedules(tables):
    for name, sizes in tables.items():
        schedule, length, steps = re.fullmatch(r"(\w+)_n(\d+)_steps(\d+)", name).groups()
        assert list(arpg_step_sizes(int(length), int(steps), schedule)) == sizes, name


def check_var(golden, tmp_path, keep=ignore):
    arguments = golden.facts["args"]
    vae = Golden((golden.folder / golden.facts["vae_fixture"]).resolve())
    tokenizer, path = multiscale_tokenizer(vae, tmp_path)
    scales = tuple(arguments["patch_nums"])
    config = var.Config(
        width=arguments["embed_dim"],
        depth=arguments["depth"],
        heads=arguments["num_heads"],
        mlp_ratio=arguments["mlp_ratio"],
        code_width=vae.facts["args"]["z_channels"],
        phis=vae.facts["args"]["share_quant_resi"],
        l2_norm=arguments["attn_l2_norm"],
        shared_aln=arguments["shared_aln"],
    )
    spec = tokenizer.spec(arguments["num_classes"])
    assert spec.scales == scales
    model = restored(golden, config, spec, tmp_path, path)
    labels, tokens = golden["labels"], golden["tokens"]
    keep(model)
    golden.close("var_input", model.quantizer.inputs(tokens), atol=1e-4)
    plan = model.plan(range(len(labels)))
    golden.equal("mask", plan.step_L[:, None] >= plan.step_L)
    check_teacher_forced(golden, model, "", labels, tokens, plan, tokens, model.blocks, 2e-4)
    golden.gradients("grad.", lambda name: model.get_parameter(name).grad)
    for name, scale in golden.names(r"greedy_cfg([\d.]+)\.tokens"):
        prefix = name.removesuffix("tokens")
        check_painting(golden, model, tokenizer, prefix, Guidance(scale=float(scale)))

    def sampling(combination):
        top_p = combination["top_p"] or 1.0  # VAR's 0 is "off"
        return SamplingConfig(top_k=combination["top_k"], top_p=top_p, top_p_rule="var")

    check_filters(golden, sampling)


def check_painting(golden, model, tokenizer, prefix, guidance):
    """Greedy tokens, their logits, the canvas after every scale and the picture."""
    labels = golden["labels"]
    plan = model.plan(range(len(labels)))
    greedy, raw = greedy_decode(model, labels, plan, guidance)
    golden.equal(f"{prefix}tokens", greedy)
    golden.close(f"{prefix}raw_logits", raw, atol=2e-4)
    for name, index in golden.names(re.escape(prefix) + r"fhat_(\w+)"):
        count = len(model.spec.scales) if index == "last" else int(index) + 1
        canvas = model.quantizer.blank(len(labels))
        for step in range(count):
            canvas += model.quantizer.contribution(greedy[:, plan.slots(step)], step)
        golden.close(name, canvas, atol=2e-4)
    with torch.no_grad():
        image = tokenizer.render(tokenizer.embed(greedy)).clamp(-1, 1).add(1).div(2)
    golden.close(f"{prefix}image", image, atol=2e-4)
