"""Trainings before distillation: stopped at any time, they go on to the same numbers; what is
finished is not trained again, and nothing is lost unasked."""

import json

import pytest
import torch

from common.config.plugins import make
from common.errors import InputError
from common.files.made_from import difference
from common.files.snapshots import Snapshots
from common.images.opening import ImagesConfig, open_images
from deploy.stages.training_log import TrainingLog
from learner.pretrain import PretrainConfig, Pretraining
from learner.resumable import ResumableTraining
from learner.tokenizer_training import ImageBatches, TokenizerTraining, TokenizerTrainingConfig

STEPS = 9
OPTIMIZER = {"learning_rate": 3e-3, "warmup": 2, "schedule": "cosine"}


class Rows(list):
    """A metrics sink that keeps what is posted, but for the time."""

    def post(self, row):
        self.append({name: value for name, value in row.items() if name != "time"})


def never():
    return None


def backbone_training(tiny, data):
    """Dropout is on: its draws must be those of the step as well."""
    settings = {"steps": STEPS, "batch_size": 16, "optimizer": OPTIMIZER}
    config = PretrainConfig.model_validate(settings)
    return Pretraining(
        tiny("llamagen"), data, config, seed=3, device="cpu", section="pretrain.teacher"
    )


def tokenizer_training(tiny, data):
    """Codes die and move all the time, in random views of the images."""
    pixel_NCHW = open_images(ImagesConfig(), "train").pixels(70)
    kind = {"kind": "conv_vq", "patch": 2, "width": 32, "res_blocks": 1, "code_width": 4}
    tokenizer = make("common.tokenization.tokenizers", {**kind, "vocab_size": 32}).fit(
        pixel_NCHW.split(50), size=8, channels=1, seed=3
    )
    config = TokenizerTrainingConfig.model_validate(
        {"steps": STEPS, "batch_size": 16, "revive_after": 2, "optimizer": OPTIMIZER}
    )
    batches = ImageBatches(pixel_NCHW, 8, "flip", 16, torch.Generator().manual_seed(5))
    return TokenizerTraining(tokenizer, batches, config, seed=1, device="cpu")


def resumable(training, folder, every=0, made_from=None):
    return ResumableTraining(
        training,
        STEPS,
        snapshots=Snapshots(folder),
        every=every,
        made_from={"seed": 1} if made_from is None else made_from,
    )


def flat(value):
    if isinstance(value, dict):
        return [inner for name in sorted(value, key=str) for inner in flat(value[name])]
    return [x for v in value for x in flat(v)] if isinstance(value, list) else [value]


@pytest.mark.parametrize("build", [backbone_training, tokenizer_training])
@pytest.mark.parametrize("cut", [1, 4, 8])
def test_a_stopped_training_goes_on_to_the_same_bits(build, cut, tiny, data, tmp_path):
    whole, wanted = build(tiny, data), Rows()
    resumable(whole, tmp_path / "whole").run(wanted, never)
    rows, stopped = Rows(), build(tiny, data)
    first = resumable(stopped, tmp_path / "cut")
    course = first.run(rows, lambda: "enough" if stopped.steps_done == cut else None)
    assert (course.cause, course.steps, len(rows)) == ("enough", cut, cut)
    again = build(tiny, data)
    second = resumable(again, tmp_path / "cut")
    assert second.resume() == cut
    course = second.run(rows, never)
    assert (course.cause, course.steps) == (None, STEPS)
    assert rows == wanted
    assert course.facts()["loss"] == sum(row["loss"] for row in wanted) / STEPS
    pairs = zip(flat(again.snapshot()), flat(whole.snapshot()), strict=True)
    assert all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in pairs)


def test_a_stop_at_the_last_step_is_heard_and_nothing_is_left_to_do(tiny, data, tmp_path):
    """Whoever trains the student next must not go on after Ctrl-C."""
    training = backbone_training(tiny, data)
    course = resumable(training, tmp_path).run(
        Rows(), lambda: "Ctrl-C" if training.steps_done == STEPS else None
    )
    assert (course.cause, course.steps) == ("Ctrl-C", STEPS)
    again = resumable(backbone_training(tiny, data), tmp_path)
    assert again.resume() == STEPS
    rows = Rows()
    course = again.run(rows, never)
    assert (course.cause, course.steps, len(rows)) == (None, STEPS, 0)


def test_snapshots_come_every_so_many_steps_but_not_after_the_last(tiny, data, tmp_path):
    training = backbone_training(tiny, data)
    resumable(training, tmp_path, every=4).run(Rows(), never)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == [
        "step-00000004",
        "step-00000008",
    ]
    other = resumable(backbone_training(tiny, data), tmp_path, every=3)
    assert other.resume() == 8


def test_a_snapshot_of_something_else_is_refused_by_name(tiny, data, tmp_path):
    made_from = {"pretrain": {"teacher": {"optimizer": {"learning_rate": 0.1}}}}
    resumable(backbone_training(tiny, data), tmp_path, 4, made_from).run(Rows(), never)
    changed = {"pretrain": {"teacher": {"optimizer": {"learning_rate": 0.2}}}}
    with pytest.raises(InputError, match=r"optimizer\.learning_rate was 0\.1 and is 0\.2; change"):
        resumable(backbone_training(tiny, data), tmp_path, 4, changed).resume()


def rename_a_tensor(tensors, entry, name):
    tensors[entry]["foreign"] = tensors[entry].pop(name)


def widen_a_tensor(tensors, entry, name):
    tensors[entry][name] = torch.zeros(3, 5)


def widen_a_moment(tensors, entry, name):
    tensors["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3, 5)


def lose_the_optimizer(tensors, entry, name):
    del tensors["optimizer"]


@pytest.mark.parametrize("build", [backbone_training, tokenizer_training])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (rename_a_tensor, "foreign is float32 .*, but the model's is absent"),
        (widen_a_tensor, r"is float32 \[3, 5\], but the model's is float32"),
        (widen_a_moment, r"optimizer\.exp_avg of .* is float32 \[3, 5\], but the model's"),
        (lose_the_optimizer, "'optimizer' is absent"),
    ],
)
def test_a_snapshot_that_is_sealed_but_of_another_model_is_refused_by_tensor(
    tiny, data, tmp_path, build, change, words
):
    training = build(tiny, data)
    resumable(training, tmp_path, every=4).run(
        Rows(), lambda: "enough" if training.steps_done == 4 else None
    )
    snapshots = Snapshots(tmp_path)
    tensors, facts = snapshots.load(4)
    entry = "student" if "student" in tensors else "tokenizer"
    name = max(tensors[entry])  # sorts after "foreign", which is then the first to differ
    change(tensors, entry, name)
    snapshots.save(4, tensors, facts)
    with pytest.raises(InputError, match=rf"step-00000004: .*{words}.*begin again with --restart"):
        resumable(build(tiny, data), tmp_path).resume()


def test_a_damaged_snapshot_is_named_and_the_one_before_is_offered(tiny, data, tmp_path):
    resumable(backbone_training(tiny, data), tmp_path, every=4).run(Rows(), never)
    (tmp_path / "step-00000008" / "tensors.pt").write_bytes(b"")
    words = r"step-00000008.* is damaged.*remove .*step-00000008, and --resume .* from step 4"
    with pytest.raises(InputError, match=words):
        resumable(backbone_training(tiny, data), tmp_path).resume()


def test_differences_name_the_first_key():
    assert difference({"a": {"b": (1, 2)}}, {"a": {"b": [1, 2]}}) is None
    assert difference({"a": {"b": 1}}, {"a": {"b": 2}}) == "a.b was 1 and is 2"
    assert difference({"a": 1}, {"a": 1, "b": {"c": 3}}) == 'b was not given and is {"c": 3}'
    assert difference({"a": 1, "b": 2}, {"a": 1}) == "b was 2 and is not given"
    assert difference({"a": 1}, {"a": True}) is None


def test_a_log_forgets_the_steps_that_are_done_again(run_in):
    workspace = run_in()[1]
    path = workspace.root / "some.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(1, 8)]
    path.write_text("\n".join([*lines, '{"step": 8, "lo']))
    log = TrainingLog(workspace, "some", done=5)
    log.post({"step": 6, "time": 0.0, "loss": 2.0})
    log.close()
    rows = [json.loads(line) for line in path.open()]
    assert [(row["step"], row["loss"]) for row in rows] == [
        *((n, 1.0) for n in range(1, 6)),
        (6, 2),
    ]
    TrainingLog(workspace, "some", done=0).close()
    assert path.read_text() == ""
