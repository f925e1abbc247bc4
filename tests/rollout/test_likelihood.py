"""Divergences of whole sequences, against sums over all of them and against single draws."""

import pytest
import torch
from building.tables import Table

from common.data.tokens import load_tokens
from common.errors import Diverged, InputError
from common.images.opening import open_images
from common.models.guidance import Guidance
from common.perceptual.classifier import Classifier, load_classifier, save_classifier
from common.randomness import derive_seed
from common.tokenization.tokenizer import load_tokenizer
from deploy.report.grids import spread
from deploy.stages.likelihood import LikelihoodProbe
from rollout.evaluation.likelihood import (
    acceptance_of_rows,
    divergence_of_rows,
    entropy_of_rows,
    estimates,
    surprise_of_rows,
)
from rollout.evaluation.metrics import image_seeds
from rollout.sampler import SamplingConfig, sample


def test_the_expected_number_of_a_row_is_that_of_whole_sequences():
    """Weighed by the probabilities of all 64 sequences, per token."""
    student, teacher = Table(0, 4, 3), Table(1, 4, 3)
    q_B, p_B = student.probability_B().detach(), teacher.probability_B().detach()
    q_BLV, p_BLV = student.logprob_BLV().detach(), teacher.logprob_BLV().detach()
    reverse = (q_B * (q_B.log() - p_B.log())).sum() / 3
    forward = (p_B * (p_B.log() - q_B.log())).sum() / 3
    torch.testing.assert_close((q_B * divergence_of_rows(q_BLV, p_BLV)).sum(), reverse)
    torch.testing.assert_close((p_B * divergence_of_rows(p_BLV, q_BLV)).sum(), forward)
    surprise_B = surprise_of_rows(q_BLV, student.sequences)
    torch.testing.assert_close(surprise_B, -q_B.log() / 3)
    apart_BL = 0.5 * (q_BLV.exp() - p_BLV.exp()).abs().sum(-1)
    torch.testing.assert_close(acceptance_of_rows(q_BLV, p_BLV), 1 - apart_BL.mean(1))
    assert (reverse - forward).abs() > 1e-3
    torch.testing.assert_close((q_B * entropy_of_rows(q_BLV)).sum(), -(q_B * q_B.log()).sum() / 3)


def test_a_code_of_no_probability_counts_nothing_and_errors_shrink_with_the_root():
    none_BLV = torch.tensor([[[0.0, -torch.inf]]])
    assert float(divergence_of_rows(none_BLV, torch.tensor([[[-0.5, -0.5]]]))) == 0.5
    value_N = torch.randn(400, generator=torch.Generator().manual_seed(0)).double()
    found = estimates({"x": value_N, "y": value_N[:100]})
    assert found["x_se"] == pytest.approx(float(value_N.std()) / 20)
    assert found["y_se"] == pytest.approx(float(value_N[:100].std()) / 10)
    with pytest.raises(ValueError, match="1 sequences, of which there is no error"):
        estimates({"x": torch.tensor([1.0])})
    with pytest.raises(Diverged, match="x is not finite: one of two models"):
        estimates({"x": torch.tensor([1.0, torch.nan])})


@pytest.fixture
def run(run_in):
    return run_in("evaluate.likelihood_samples=60", "teacher.guidance.scale=1.5")


def test_a_student_is_measured_against_the_guided_teacher(run):
    """KL(q || p) within four standard errors of means of log q - log p."""
    config, workspace = run
    student = workspace.model(config, "student_before").load().eval()
    found = LikelihoodProbe(config, workspace, torch.arange(10)).of_student(student)
    assert set(found) == {
        f"{name}{error}"
        for name in ("reverse_kl", "forward_kl", "acceptance", "entropy", "data_nll")
        for error in ("", "_se")
    }
    teacher = workspace.model(config, "teacher").load().eval()
    label_N = torch.arange(600) % 10
    seeds = image_seeds(derive_seed(9, "other"), 600)
    drawn = sample(student, label_N, seeds, SamplingConfig())
    with torch.no_grad():
        p_BLV, null_BLV, q_BLV = (
            model(label_B, drawn.token_BL, drawn.plan)
            for model, label_B in (
                (teacher, label_N),
                (teacher, torch.full_like(label_N, 10)),
                (student, label_N),
            )
        )
    guided = (null_BLV + 1.5 * (p_BLV - null_BLV)).log_softmax(-1)
    token = drawn.token_BL[..., None]
    ratio_N = (q_BLV.log_softmax(-1) - guided).gather(-1, token)[..., 0].mean(1).double()
    error = float(ratio_N.std()) / 600**0.5 + found["reverse_kl_se"]
    assert abs(float(ratio_N.mean()) - found["reverse_kl"]) < 4 * error
    assert found["reverse_kl"] > 10 * found["reverse_kl_se"]


def test_the_teachers_samples_are_drawn_once_and_it_is_no_nat_from_itself(run):
    """Where it is not guided."""
    config, workspace = run
    class_K = torch.arange(10)
    student = workspace.model(config, "student_before").load().eval()
    teacher = workspace.model(config, "teacher").load().eval()
    found = LikelihoodProbe(config, workspace, class_K).of_student(student)
    before = workspace.teacher_samples.stat().st_mtime_ns
    again = LikelihoodProbe(config, workspace, class_K).of_student(student)
    assert again == found
    assert workspace.teacher_samples.stat().st_mtime_ns == before
    plain = config.model_copy(
        update={"teacher": config.teacher.model_copy(update={"guidance": None})}
    )
    itself = LikelihoodProbe(plain, workspace, class_K).of_student(teacher)
    assert itself["reverse_kl"] == itself["forward_kl"] == pytest.approx(0, abs=1e-9)
    assert itself["acceptance"] == pytest.approx(1, abs=1e-6)
    assert workspace.teacher_samples.stat().st_mtime_ns > before, "another target, other samples"


def test_data_is_the_held_out_images(run):
    config, workspace = run
    found = LikelihoodProbe(config, workspace, torch.arange(10)).of_teacher()
    assert set(found) == {"data_nll", "data_nll_se"}
    assert 0 < found["data_nll"] < 2 * torch.tensor(32.0).log()
    assert found["data_nll_se"] > 0
    assert isinstance(config.teacher.guidance, Guidance)


def test_rewards_are_measured_on_samples_and_on_data(run_in):
    """As the scorer says of the same sequences; what compares with data sequences says something of
    data alone: the training images, which the tokenizer cannot draw as they are."""
    how = ("scorers.class.kind=classifier", "scorers.mse.kind=decoded_mse")
    config, workspace = run_in(*how, "evaluate.likelihood_samples=40")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_classifier(workspace.classifier, Classifier(4, 10), {})
    probe = LikelihoodProbe(config, workspace, torch.arange(10))
    found = probe.of_student(workspace.model(config, "student_before").load().eval())
    rewards = {name for name in found if name.startswith("reward")}
    names = ("reward_classifier", "reward_classifier_of_data", "reward_decoded_mse_of_data")
    assert rewards == {f"{name}{error}" for name in names for error in ("", "_se")}
    data, tokenizer = load_tokens(workspace.test_tokens), load_tokenizer(workspace.tokenizer)
    chosen = torch.tensor(spread(len(data), 40))
    pixels = tokenizer.decode(data.token_NAL[chosen, 0].long())
    with torch.no_grad():
        logprob_NK = load_classifier(workspace.classifier)[0](pixels).log_softmax(-1)
    wanted_N = logprob_NK.gather(1, data.label_N[chosen].long()[:, None])[:, 0]
    assert found["reward_classifier_of_data"] == pytest.approx(float(wanted_N.mean()), abs=1e-5)
    assert found["reward_classifier"] < 0
    train, pixel_NCHW = load_tokens(workspace.train_tokens), open_images(config.images, "train")
    row_N = torch.tensor(spread(len(train), 40))
    drawn = tokenizer.image(train.token_NAL[row_N, 0].long()).clamp(-1, 1)
    lost = (drawn - (pixel_NCHW.pixels()[row_N].float() / 127.5 - 1)).square().mean()
    assert found["reward_decoded_mse_of_data"] == pytest.approx(-float(lost), rel=1e-5)
    as_codes = config.model_copy(
        update={"scorers": {"mse": config.scorers["mse"].model_copy(update={"target": "codes"})}}
    )
    again = LikelihoodProbe(as_codes, workspace, torch.arange(10)).of_teacher()
    assert again["reward_decoded_mse_of_data"] == 0
    assert not {name for name in again if name.startswith("reward_classifier")}
    workspace.classifier.unlink()
    left = LikelihoodProbe(config, workspace, torch.arange(10)).of_teacher()
    rewards = {name for name in left if name.startswith("reward")}
    assert rewards == {"reward_decoded_mse_of_data", "reward_decoded_mse_of_data_se"}


def test_one_sequence_has_no_error_and_is_refused(run_in):
    with pytest.raises(InputError, match=r"likelihood_samples is 1, .* give it 2 or more"):
        run_in("evaluate.likelihood_samples=1")
