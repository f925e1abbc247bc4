"""The teacher server: exact guided signals, batching that changes nothing, clear refusals."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from building.waiting import until
from torch import nn

from common.artifacts.backbone_file import save_backbone
from common.artifacts.model_file import ModelFile
from common.config.plugins import kinds, load_plugin
from common.errors import InputError
from common.exchange.trajectory import concatenate, from_arrow, to_arrow
from common.models.guidance import Guidance
from teacher_server.batching import Batcher, BatchingConfig
from teacher_server.teacher import JOINED_TOKENS, Teacher, TeacherConfig, guided_features


@pytest.fixture
def stored(tiny, tmp_path):
    def build(kind):
        model = tiny(kind, 1)
        path = tmp_path / f"{kind}.safetensors"
        config = load_plugin("common.models.backbones", kind).Config.tiny()
        save_backbone(path, model, config)
        return ModelFile(path, "models.teacher", config, model.spec, tmp_path / "none"), model

    return build


@pytest.fixture
def teacher_file(stored):
    return stored("llamagen")[0]


def server(file, **settings):
    coalesce = settings.pop("coalesce", True)
    config = TeacherConfig.model_validate(settings)
    return Teacher(config, file, coalesce=coalesce)


@torch.no_grad()
@pytest.mark.parametrize("guidance", [None, 3.0])
@pytest.mark.parametrize("kind", kinds("common.exchange.signals"))
@pytest.mark.parametrize("family", kinds("common.models.backbones"))
def test_signal_is_the_exact_guided_distribution(stored, tiny, sampled, family, kind, guidance):
    """For every family under its own published rule, whose scale differs between steps."""
    signal = load_plugin("common.exchange.signals", kind).Config()
    file, model = stored(family)
    teacher = server(file, guidance=guidance, signal={"kind": kind})
    batch = sampled(tiny(family, 0))
    scored = from_arrow(teacher.score(to_arrow(batch)))
    spec = model.spec
    steps = Guidance(scale=3.0).scales(batch.plan, model.guidance_rule)
    scale = torch.tensor(steps)[batch.plan.step_L][:, None] if guidance else 1.0
    with_class = model(batch.label_B, batch.token_BL, batch.plan)
    null_B = torch.full_like(batch.label_B, spec.null_class)
    without = model(null_B, batch.token_BL, batch.plan)
    wanted = (without + scale * (with_class - without)).log_softmax(-1)
    columns = {name: value.flatten(0, 1) for name, value in scored.signal.items()}
    found = signal.logprob(columns, model.head).view_as(wanted)
    # A scale of 3 multiplies the rounding of logits of both passes by up to 5.
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-4)
    entropy = -(wanted.exp() * wanted).sum(-1)
    torch.testing.assert_close(scored.signal["entropy"], entropy, atol=1e-4, rtol=1e-4)
    per_token = sum(v.nbytes for n, v in columns.items() if n != "entropy") / len(
        columns["entropy"]
    )
    assert per_token == signal.bytes_per_token(model.head.in_features, spec.vocab_size)


@pytest.mark.parametrize(
    ("kind", "entropy", "passes"),
    [
        ("guided_hidden", False, 0),
        ("guided_hidden", True, 1),
        ("full", False, 1),
        ("full", True, 1),
    ],
)
def test_every_token_passes_the_head_at_most_once(
    teacher_file, tiny, sampled, kind, entropy, passes
):
    """And never where hidden vectors are sent and nobody reads their entropy."""
    config = TeacherConfig.model_validate({"signal": {"kind": kind}})
    teacher = Teacher(config, teacher_file, coalesce=False, entropy=entropy)
    batch, seen = sampled(tiny("llamagen", 0)), []
    teacher._head.register_forward_pre_hook(lambda head, args: seen.append(args[0][..., 0].numel()))
    scored = teacher.opinion(batch)
    assert ("entropy" in scored.signal) == entropy
    assert sum(seen) == passes * batch.token_BL.numel()


@pytest.mark.parametrize(
    ("bounds", "passes"),
    [({"max_images": 20}, [4]), ({"max_images": 20, "max_tokens": 60}, [2, 2])],
)
def test_concurrent_requests_share_a_pass_and_get_their_own_rows(
    teacher_file, tiny, sampled, bounds, passes
):
    teacher = server(teacher_file, batching={"wait_ms": 200, **bounds})
    batches = [sampled(tiny("llamagen", 0), seed) for seed in range(4)]
    alone = server(teacher_file, coalesce=False)
    calls = []
    serve = teacher._score_all
    teacher._batcher._serve = lambda items: calls.append(len(items)) or serve(items)
    found = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: teacher.opinion(batches[i])}))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == passes, "four requests of five images, six tokens each"
    for index, batch in enumerate(batches):
        torch.testing.assert_close(
            found[index].signal["hidden"],
            alone.opinion(batch).signal["hidden"],
            atol=1e-4,
            rtol=1e-4,
        )
        assert torch.equal(found[index].token_BL, batch.token_BL)


@torch.no_grad()
@pytest.mark.parametrize("family", kinds("common.models.backbones"))
def test_both_branches_say_the_same_in_one_pass_and_in_two(tiny, sampled, family):
    """A few tokens go through together, many do not; no row sees another."""
    model, few = tiny(family, 1), sampled(tiny(family, 0))
    many, rows = concatenate([few] * 12), []
    assert few.token_BL.numel() <= JOINED_TOKENS < many.token_BL.numel()
    layer = next(part for part in model.modules() if isinstance(part, nn.Linear))
    layer.register_forward_pre_hook(lambda layer, args: rows.append(1))
    together = guided_features(model, few, Guidance(scale=3.0))
    calls = len(rows)
    apart = guided_features(model, many, Guidance(scale=3.0))
    assert len(rows) == 3 * calls, "one pass, then two"
    torch.testing.assert_close(apart, together.repeat(12, 1, 1), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together, guided_features(model, few, None), atol=1e-3)


def test_a_pass_has_no_more_tokens_than_the_config_allows():
    """Six each, of fifteen; one that is too long by itself goes alone. Nobody is overtaken."""
    passes, queued = [], threading.Event()

    def serve(items):
        passes.append((items, batcher.waiting()))
        assert queued.wait(120)
        return items

    config = BatchingConfig(wait_ms=0.1, max_tokens=15)
    batcher = Batcher(config, serve, size=lambda item: 1, tokens=len)
    items = ["first!", "second", "third!", "fourth", "fifth!", "one too long by far", "last"]
    with ThreadPoolExecutor(len(items)) as pool:
        futures = []
        for index, item in enumerate(items):  # while the first one is served
            futures.append(pool.submit(batcher.call, item))
            until(lambda waiting=index: passes and batcher.waiting() == waiting)
        queued.set()
        assert [future.result() for future in futures] == items
    assert passes[1:] == [(items[1:3], 4), (items[3:5], 2), (items[5:6], 1), (items[6:], 0)]


def test_batcher_hands_an_error_to_every_caller_and_lives_on():
    def serve(items):
        time.sleep(0.05)
        if "bad" in items:
            raise ValueError("bad item")
        return [item.upper() for item in items]

    batcher = Batcher(BatchingConfig(wait_ms=30), serve, size=len)
    with pytest.raises(ValueError, match="bad item"):
        batcher.call("bad")
    assert batcher.call("good") == "GOOD"


def test_another_vocabulary_grid_or_class_count_is_refused(teacher_file):
    for change, pattern in (
        ({"vocab_size": 32}, "vocab_size 24, but the token dataset has vocab_size 32"),
        ({"grid": (3, 2)}, r"grid \(2, 3\), but the token dataset has grid \(3, 2\)"),
        ({"num_classes": 9}, "num_classes 3, but the token dataset has num_classes 9"),
    ):
        with pytest.raises(InputError, match=pattern):
            server(replace(teacher_file, spec=replace(teacher_file.spec, **change)))


def test_records_say_how_busy_the_teacher_was(teacher_file, tiny, sampled):
    """Its share of the time since the pass before, and who came meanwhile."""
    record = to_arrow(sampled(tiny("llamagen", 0)))
    teacher = server(teacher_file, coalesce=False)
    teacher.score(record)
    time.sleep(0.2)
    started = time.perf_counter()
    idle = from_arrow(teacher.score(record)).facts
    took = time.perf_counter() - started
    assert float(idle["teacher_seconds"]) <= took
    assert 0 < float(idle["teacher_busy"]) <= took / (0.2 + took) + 1e-6
    assert idle["teacher_waiting"] == "0"
