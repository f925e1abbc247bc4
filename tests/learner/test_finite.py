"""Numbers that stop being finite end a run with a sentence; none is published or stored."""

import copy
import json

import pytest
import torch

from common.errors import Diverged, InputError
from common.exchange.provenance import DATA
from common.files.snapshots import Snapshots
from common.files.tensors import load_tensors
from common.finite import is_finite, largest, require_finite
from deploy.stages.distill import distill
from deploy.stages.learner_rank import build_learner
from deploy.stages.pretrain import pretrain_model
from learner.config import LearnerConfig
from learner.learner import Learner
from learner.objectives import mle
from learner.pretrain import PretrainConfig, data_batches
from learner.process_group import SingleProcess
from learner.relaxation import RelaxationConfig, cluster_codebook
from learner.tokenizer_training import ImageBatches, TokenizerTraining, TokenizerTrainingConfig
from rollout.sampler import SamplingConfig, decode, noise


def strict_rows(path):
    """Lines of JSON as other people's readers want it, which know neither NaN nor Infinity."""

    def refuse(word):
        raise AssertionError(f"{path} holds {word}")

    return [json.loads(line, parse_constant=refuse) for line in path.open()]


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        return [value]
    inside = value.values() if isinstance(value, dict) else value
    return [t for v in inside if isinstance(v, dict | list | torch.Tensor) for t in tensors_in(v)]


def learner_of(student, **optimizer):
    settings = LearnerConfig.model_validate({"optimizer": optimizer, "profile_every": 0})
    return Learner(settings, mle.Config(), student, seed=0, contexts=(DATA,))


def batches_of(student, data):
    return data_batches(data, PretrainConfig(batch_size=8, class_dropout=0), student, seed=0)


def test_the_first_number_that_is_not_finite_is_named():
    require_finite(3, {"loss": 1.0, "gradient's norm": 0.0}, "-")
    with pytest.raises(Diverged, match=r"^step 3: the gradient's norm is NaN; do this$"):
        require_finite(3, {"loss": 1.0, "gradient's norm": float("nan")}, "do this")
    with pytest.raises(Diverged, match=r"^step 3: the loss is infinite; do this$"):
        require_finite(3, {"loss": -torch.inf, "gradient's norm": torch.nan}, "do this")


def test_the_largest_magnitude_knows_nan_and_does_not_overflow():
    one, two = torch.tensor([1.0, -3e38]), torch.tensor([[2.0], [-7.0]])
    assert float(largest([two])) == 7
    assert float(largest([two, one])) == pytest.approx(3e38)
    assert float(largest([torch.tensor(-torch.inf), two])) == torch.inf
    assert torch.isnan(largest([torch.tensor([torch.inf, torch.nan]), two]))


def test_a_step_that_diverges_names_step_quantity_and_keys(tiny, data):
    student = tiny("llamagen")
    with torch.no_grad():
        student.head.weight.mul_(1e38)  # the logits overflow
    learner = learner_of(student)
    words = (
        r"step 1: the loss is (NaN|infinite); lower learner\.optimizer\.learning_rate \(0\.0001\)"
    )
    with pytest.raises(Diverged, match=words):
        learner.step(next(batches_of(student, data)))


def test_weights_that_overflow_in_an_update_are_seen_at_once(tiny, data):
    """Loss and gradient of the step are fine; only the new weights are not."""
    student = tiny("llamagen")
    table = next(p for p in student.parameters() if p.shape[0] == student.spec.num_classes + 1)
    with torch.no_grad():
        table[-1] = 1e31  # of the null class, which no row of the batch has; a step takes 1e8 times
    learner = learner_of(student, learning_rate=100, weight_decay=1e6)
    with pytest.raises(Diverged, match="step 1: the largest weight is infinite"):
        learner.step(next(batches_of(student, data)))


def test_healthy_steps_are_as_they_were(tiny, data):
    """The check only looks: weights after a step equal plain AdamW's on the same gradient."""
    student = tiny("llamagen")
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    plain = copy.deepcopy(student).train()
    batch = next(batches_of(student, data))
    logit_BLV = plain.head(plain.features(batch.label_B, batch.token_BL, batch.plan))
    loss = torch.nn.functional.cross_entropy(logit_BLV.flatten(0, 1), batch.token_BL.flatten())
    loss.backward()
    wanted_loss = float(loss.detach())
    norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    decay, rest = ([p for p in plain.parameters() if (p.ndim >= 2) is two] for two in (True, False))
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95)).step()
    metrics = learner_of(student, learning_rate=1e-3).step(batch)
    assert metrics["loss"] == pytest.approx(wanted_loss, rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    for (name, found), wanted in zip(student.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, atol=2e-4, rtol=0, msg=name)


def test_models_with_nan_are_not_sampled(tiny, spec):
    student = tiny("llamagen")
    with torch.no_grad():
        student.head.weight[5] = torch.nan
    plan, seeds = student.plan([1, 2]), [1, 2]
    with pytest.raises(Diverged, match="log-probabilities are not finite"):
        decode(
            student,
            torch.tensor([0, 1]),
            sampling=SamplingConfig(),
            noise_BL=noise(seeds, spec.length),
            plan=plan,
        )


ON_POLICY = ("learner.max_staleness=0", "learner.publish_every=1")
HOT = ("learner.optimizer.learning_rate=100", "learner.optimizer.weight_decay=1e6")
"""A step multiplies matrices by 1 - rate * decay, -1e8: that soon is more than float32 holds."""


@pytest.mark.parametrize(
    "how",
    [
        ("contexts.sources.student.ratio=0", "contexts.sources.data.ratio=1", "objective.kind=kd"),
        ("contexts.sources.data.ratio=0.01", "contexts.sources.student.ratio=0.99"),
    ],
)
def test_a_diverged_distillation_keeps_its_last_good_snapshot(run_in, quiet, how):
    config, workspace = run_in(*HOT, "learner.checkpoint_every=1", *ON_POLICY, *how)
    with pytest.raises(InputError) as refused:
        distill(config, workspace, quiet, local=True)
    text = str(refused.value)
    assert "lower learner.optimizer.learning_rate" in text
    rows = strict_rows(workspace.root / "metrics.jsonl")
    last = len(rows)
    assert [row["step"] for row in rows] == list(range(1, last + 1))
    assert 1 <= last < config.learner.steps
    assert f"step {last}" in text or f"step {last + 1}" in text
    assert text.endswith(f"the last good snapshot is step {last}")
    assert not workspace.student.exists()
    found = Snapshots(workspace.snapshots).latest()
    assert found is not None
    assert all(bool(torch.isfinite(value).all()) for value in tensors_in(found[0]))


def test_a_diverged_pretraining_leaves_the_file_as_it_was(run_in, quiet):
    config, workspace = run_in(*(word.replace("learner", "pretrain.student", 1) for word in HOT))
    before = workspace.student_before.read_bytes()
    words = r"step [2-5]: .* lower pretrain\.student\.optimizer\.learning_rate \(100\)"
    with pytest.raises(Diverged, match=words):
        pretrain_model(config, workspace, "student", quiet)
    assert workspace.student_before.read_bytes() == before


def test_a_teacher_that_is_not_finite_is_named(run_in, quiet):
    from common.artifacts.backbone_file import save_backbone

    config, workspace = run_in()
    model = workspace.model(config, "teacher").load()
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "norm" in name).fill_(1e38)
    path = workspace.root / "hot.safetensors"
    save_backbone(path, model, config.models.teacher)
    config, workspace = run_in(f"teacher.weights={path}")
    with pytest.raises(InputError, match=r"the teacher's hidden vectors are not finite .*weights"):
        distill(config, workspace, quiet, local=True)


def test_tokenizers_that_diverge_are_refused():
    from common.config.plugins import make
    from common.images.opening import ImagesConfig, open_images

    pixel_NCHW = open_images(ImagesConfig(), "train").pixels(200)
    settings = {"kind": "conv_vq", "patch": 2, "width": 32, "res_blocks": 1, "code_width": 4}
    config = make("common.tokenization.tokenizers", {**settings, "vocab_size": 32})
    tokenizer = config.fit(pixel_NCHW.split(50), size=8, channels=1, seed=3)
    training = TokenizerTrainingConfig.model_validate(
        {"steps": 9, "optimizer": {"learning_rate": 100, "weight_decay": 1e6, "warmup": 0}}
    )
    batches = ImageBatches(pixel_NCHW, 8, "center", 16, torch.Generator().manual_seed(0))
    course = TokenizerTraining(tokenizer, batches, training, seed=1, device="cpu")
    with pytest.raises(Diverged, match=r"lower pretrain\.tokenizer\.optimizer\.learning_rate"):
        [course.step() for _ in range(9)]


def test_code_vectors_that_are_not_finite_are_not_clustered():
    point_VD = torch.randn(16, 3)
    point_VD[3, 1] = torch.nan
    with pytest.raises(InputError, match="codebook, but its vectors are not finite"):
        cluster_codebook(point_VD, RelaxationConfig(factor=4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_student_in_half_precision_is_trained_in_float32(run_in, quiet, dtype):
    """Its values are rounded once, in the file: training is that of the same values in float32."""
    config, workspace = run_in()
    state = load_tensors(workspace.student_before)[0]
    half = {name: value.to(dtype) for name, value in state.items()}
    torch.save({"model": half}, workspace.root / "half.pt")
    exact = {name: value.float() for name, value in half.items()}
    torch.save({"model": exact}, workspace.root / "exact.pt")
    after = {}
    for name in ("half", "exact"):
        file = f"learner.weights={workspace.root / name}.pt"
        settings = ("learner.ordered=true", "learner.optimizer.learning_rate=1e-5")
        config, own = run_in(file, *settings, name=name)
        learner = build_learner(config, own, SingleProcess())
        held = tensors_in([learner.snapshot()[part] for part in ("student", "ema")])
        assert {value.dtype for value in held} == {torch.float32}
        distill(config, own, quiet, local=True)
        after[name] = load_tensors(own.student)[0], load_tensors(own.student_ema)[0]
        assert {value.dtype for value in tensors_in(list(after[name]))} == {torch.float32}
    for found, wanted in zip(after["half"], after["exact"], strict=True):
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    moved = [(after["half"][0][name] != exact[name]).double().mean() for name in exact]
    assert min(moved) > 0.5, "updates of 1e-5 do not round away"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_one_wrong_number_is_found_wherever_it_is(dtype, wrong):
    """Lengths around those of vector registers, whose tails kernels treat apart."""
    for length in (1, 2, 7, 8, 9, 15, 16, 17, 33, 64, 100, 1000, 40_000):
        value = torch.full((length, 2), 3.0, dtype=dtype)
        assert is_finite(value)
        for at in {0, length // 2, length - 1}:
            broken = value.clone()
            broken[at, 1] = wrong
            assert not is_finite(broken)
            assert not is_finite(broken[:, 1])
    assert is_finite(torch.zeros(0, dtype=dtype))
    assert is_finite(torch.tensor([1, 2]))
