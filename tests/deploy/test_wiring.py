"""What a config promises reaches the roles that must keep it, or is refused at once."""

import pytest
import torch

from common.errors import InputError
from common.files.tensors import load_tensors
from common.perceptual.classifier import Classifier, load_classifier, save_classifier
from common.tokenization.tokenizer import load_tokenizer, save_tokenizer
from common.tokenization.tokenizers import conv_vq
from deploy.run_folder.workspace import Workspace
from deploy.stages.distill import distill
from deploy.stages.learner_rank import cluster_map, tokenizer_render
from deploy.stages.perceptual import classifier_features
from learner.process_group import SingleProcess
from learner.relaxation import cluster_codebook


@pytest.mark.parametrize("source", ["codebook", "lm_embedding"])
def test_clusters_are_of_the_points_that_were_asked_for(run_in, source):
    run, workspace = run_in(f"objective.relaxation.source={source}")
    points = {
        "codebook": load_tokenizer(workspace.tokenizer).codebook_VD,
        "lm_embedding": workspace.model(run, "teacher").head().weight,
    }
    relaxation = run.objective.relaxation
    digests = {}
    for name, point_VD in points.items():
        expected = cluster_codebook(point_VD, relaxation)
        assert expected is not None
        digests[name] = expected.digest
    assert digests["codebook"] != digests["lm_embedding"]
    made = cluster_map(run, workspace, SingleProcess(), run.objective.relaxation)
    assert made is not None
    assert made.digest == digests[source]
    assert load_tensors(workspace.clusters)[1]["digest"] == digests[source]


def test_a_resumed_run_reads_its_map(run_in):
    run, workspace = run_in()
    made = cluster_map(run, workspace, SingleProcess(), run.objective.relaxation)
    written = workspace.clusters.stat().st_mtime_ns
    again = cluster_map(run, workspace, SingleProcess(), run.objective.relaxation)
    assert made is not None
    assert again is not None
    assert torch.equal(made.cluster_V, again.cluster_V)
    assert workspace.clusters.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["contexts.sources.data.ratio=0"], "objective.relaxation.mix below 1"),
        (["objective.kind=sampled_rkl", "contexts.sources.student.ratio=0"], "rollouts only"),
        (["objective.kind=minillm", "rollout.sampling.top_k=4"], "objective.kind=minillm"),
        (["objective.kind=sampled_rkl", "rollout.sampling.guidance=2"], "rollout.sampling"),
        (["objective.kind=sampled_rkl", "rollout.sampling.temperature=0.9"], "rollout.sampling"),
    ],
)
def test_what_defeats_the_objective_is_refused_before_anything_starts(run_in, overrides, words):
    with pytest.raises(InputError, match=words):
        run_in(*overrides)


def test_a_gate_that_closes_everything_leaves_the_folders_config(run_in, quiet):
    run, workspace = run_in("objective.gate.tau=0.99")
    workspace.config.write_text("seed = 5\n")
    with pytest.raises(InputError, match=r"objective\.gate\.tau 0\.99 closes"):
        distill(run, workspace, quiet, local=True)
    assert workspace.config.read_text() == "seed = 5\n"


def test_filters_are_fine_where_no_probability_is_corrected(run_in):
    run, _ = run_in("objective.kind=gkd", "rollout.sampling.top_k=4", "rollout.sampling.guidance=2")
    assert not run.rollout.sampling.is_plain


def test_an_objective_is_given_a_decoder_and_features_that_gradients_pass(run_in):
    _, workspace = run_in()
    tokenizer = load_tokenizer(workspace.tokenizer)
    render = tokenizer_render(workspace, torch.device("cpu"))
    token_BL = torch.arange(2 * tokenizer.shape.length).view(2, -1) % tokenizer.shape.vocab_size
    vector_BLD = tokenizer.codebook_VD[token_BL].requires_grad_()
    image = render(vector_BLD)
    assert torch.equal(tokenizer.to_pixels(image), tokenizer.decode(token_BL))
    with pytest.raises(InputError, match="begin again with `varkd distill`"):
        classifier_features(workspace, torch.device("cpu"))
    save_classifier(workspace.classifier, Classifier(4, 10), {})
    perceptual = classifier_features(workspace, torch.device("cpu"))
    feature_BF = perceptual(image)
    expected = load_classifier(workspace.classifier)[0].layers((image + 1) * 127.5)
    assert torch.equal(feature_BF, expected)
    assert feature_BF.shape == (2, 8 * 8 * 4 + 4 * 4 * 4 + 2 * 2 * 8), "8x8 pixels, three layers"
    (grad,) = torch.autograd.grad(feature_BF.square().sum(), vector_BLD)
    assert grad.abs().sum() > 0


def test_what_an_image_loss_teaches_is_never_the_decoder(tmp_path):
    """Of a tokenizer with weights: gradients reach the vectors and no parameter."""
    config, workspace = conv_vq.Config(vocab_size=16, patch=4), Workspace(tmp_path)
    torch.manual_seed(0)
    made = config.build(size=8, channels=1)
    assert any(weight.requires_grad for weight in made.parameters())
    save_tokenizer(workspace.tokenizer, made, config, size=8, channels=1)
    render = tokenizer_render(workspace, torch.device("cpu"))
    vector_BLD = torch.randn(2, made.shape.length, made.codebook_VD.shape[1]).requires_grad_()
    render(vector_BLD).square().sum().backward()
    assert (vector_BLD.grad.abs().sum(-1) > 0).all()
    decoder = list(render.__self__.parameters())
    assert decoder
    assert all(not weight.requires_grad and weight.grad is None for weight in decoder)
