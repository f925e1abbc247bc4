"""What reward scorers say, against images drawn by hand; and what becomes of one that fails."""

import io
import logging
from dataclasses import replace

import pytest
import torch
from building.fixtures import SQUARE

from common.errors import InputError
from common.exchange.trajectory import from_arrow, to_arrow
from common.tokenization.tokenizer import load_tokenizer
from teacher_server.reward import LOG, Judged, RewardConfig
from teacher_server.scorers import classifier, decoded_mse, perceptual


@pytest.fixture
def batch(tiny, sampled):
    """Five rows; the first is the sequence that it is compared with."""
    rows = sampled(tiny("llamagen", 0, spec=SQUARE))
    target_BL = rows.token_BL.roll(1, 0)
    target_BL[0] = rows.token_BL[0]
    return replace(rows, target_token_BL=target_BL)


def said(config, files, batch):
    return from_arrow(config.build(files).score(to_arrow(batch)))


def images(files, batch, token_BL):
    tokenizer = load_tokenizer(files.teacher.tokenizer)
    return tokenizer.image(batch.plan.to_grid(token_BL)).clamp(-1, 1)


def test_decoded_mse_is_the_error_of_images_and_its_shares_are_those_of_patches(
    judging_files, batch
):
    found = said(decoded_mse.Config(per_token=True), judging_files, batch)
    drawn, wanted = (images(judging_files, batch, t) for t in (batch.token_BL, batch.target_BL))
    reward_B = -(drawn - wanted).square().mean((1, 2, 3))
    torch.testing.assert_close(found.sequence["decoded_mse"], reward_B)
    assert found.sequence["decoded_mse"][0] == 0
    assert (found.sequence["decoded_mse"][1:] < 0).any()
    share_BL = found.signal["decoded_mse"]
    torch.testing.assert_close(share_BL.sum(1), reward_B)
    code_VD = load_tokenizer(judging_files.teacher.tokenizer).codebook_VD
    apart_BL = (code_VD[batch.token_BL] - code_VD[batch.target_BL]).square().mean(-1)
    torch.testing.assert_close(share_BL, -apart_BL / SQUARE.length)
    assert "decoded_mse" not in said(decoded_mse.Config(), judging_files, batch).signal


class Photographs:
    """By the number of a condition."""

    def pixels(self, index_B):
        return (index_B[:, None, None, None] * 16 % 256 + torch.zeros(1, 1, 4, 4)).to(torch.uint8)


@pytest.mark.parametrize("size", [1, 2])
def test_pixels_are_those_of_the_rows_own_image(judging_files, batch, size):
    """All rows of a group have one image."""
    batch, files = batch.rows(slice(0, 4)), replace(judging_files, images=Photographs())
    batch = replace(batch, id_B=torch.arange(8, 12))
    if size > 1:
        groups = {"group_B": batch.id_B // 2, "member_B": batch.id_B % 2}
        groups |= {"label_B": batch.label_B * 0, "prefix_B": batch.prefix_B * 0}
        batch = replace(batch, **groups, facts={"group_size": "2"})
    wanted_B = (batch.id_B // size * 16).float() / 127.5 - 1
    drawn = images(files, batch, batch.token_BL)
    found = said(decoded_mse.Config(target="pixels", per_token=True), files, batch)
    reward_B = -(drawn - wanted_B[:, None, None, None]).square().mean((1, 2, 3))
    torch.testing.assert_close(found.sequence["decoded_mse"], reward_B)
    torch.testing.assert_close(found.signal["decoded_mse"].sum(1), reward_B)
    found = said(perceptual.Config(target="pixels"), files, batch).sequence["perceptual"]
    network = files.load_classifier(torch.device("cpu"))
    with torch.no_grad():
        seen, meant = (
            network.perceptual(image)
            for image in (drawn, wanted_B[:, None, None, None].expand(4, 1, 4, 4))
        )
    torch.testing.assert_close(found, -(seen - meant).square().sum(1))


def test_perceptual_is_the_distance_in_the_classifiers_layers(judging_files, batch):
    found = said(perceptual.Config(), judging_files, batch).sequence["perceptual"]
    network = judging_files.load_classifier(torch.device("cpu"))
    with torch.no_grad():
        drawn, wanted = (
            network.layers((images(judging_files, batch, tokens) + 1) * 127.5)
            for tokens in (batch.token_BL, batch.target_BL)
        )
    torch.testing.assert_close(found, -(drawn - wanted).square().sum(1))
    assert found[0] == 0


def test_classifier_is_the_log_probability_of_the_label_and_of_no_label_0(judging_files, batch):
    found = said(classifier.Config(), judging_files, batch).sequence["classifier"]
    pixels = ((images(judging_files, batch, batch.token_BL) + 1) * 127.5).round().to(torch.uint8)
    with torch.no_grad():
        logprob_BK = judging_files.load_classifier(torch.device("cpu"))(pixels).log_softmax(-1)
    for row, label in enumerate(batch.label_B.tolist()):
        wanted = 0.0 if label == SQUARE.num_classes else float(logprob_BK[row, label])
        assert float(found[row]) == pytest.approx(wanted, abs=1e-6)
    assert SQUARE.num_classes in batch.label_B.tolist()


class Patchy(RewardConfig):
    """Brightness, but of one row there is none; of a whole record with a bad id it breaks."""

    def judge(self, files):
        def judged(batch):
            if int(batch.id_B[0]) == 99:
                raise ZeroDivisionError
            reward_B = batch.token_BL.double().mean(1)
            reward_B[2] = torch.inf
            return Judged(reward_B)

        return judged


def test_a_reward_that_is_not_finite_or_breaks_costs_its_rows_alone(judging_files, batch):
    told = io.StringIO()
    handler = logging.StreamHandler(told)
    LOG.addHandler(handler)
    kind = Patchy().kind
    found = said(Patchy(), judging_files, batch)
    assert found.sequence[f"{kind}_failed"].tolist() == [0, 0, 1, 0, 0]
    assert found.facts[f"failure.{kind}"] == "1 of 5 numbers are not finite"
    assert found.sequence[kind][2] == 0
    torch.testing.assert_close(found.sequence[kind][:2], batch.token_BL[:2].float().mean(1))
    broken = replace(batch, id_B=batch.id_B + 99 - batch.id_B[0])
    found = said(Patchy(), judging_files, broken)
    assert found.sequence[f"{kind}_failed"].all()
    assert found.facts[f"failure.{kind}"].startswith("ZeroDivisionError(")
    LOG.removeHandler(handler)
    assert "ZeroDivisionError" in told.getvalue()


class Torn(RewardConfig):
    """Numbers, but a share of one slot that is none."""

    def adds_to_tokens(self):
        return (self.kind,)

    def judge(self, files):
        def judged(batch):
            share_BL = torch.zeros(batch.token_BL.shape)
            share_BL[1, 2] = torch.nan
            return Judged(torch.ones(len(batch)), share_BL)

        return judged


def test_a_share_that_is_not_finite_fails_its_row(judging_files, batch):
    found = said(Torn(), judging_files, batch)
    assert found.sequence[f"{Torn().kind}_failed"].tolist() == [0, 1, 0, 0, 0]


def test_what_a_reward_lacks_is_said(judging_files, batch):
    with pytest.raises(InputError, match="given no images; set its target to codes"):
        decoded_mse.Config(target="pixels").build(judging_files)
    bare = replace(judging_files, classifier=None)
    for config in (classifier.Config(), perceptual.Config()):
        assert config.networks() == {"classifier"}
        with pytest.raises(InputError, match="but the run has none"):
            config.build(bare)
