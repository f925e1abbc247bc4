"""Who learns from which loss of Distilled Decoding 2: what is given stays as it is
(docs/one_step.md, "Losses")."""

from dataclasses import dataclass

import pytest
import torch
from building.students import velocity_model
from torch import Tensor

from common.flow.laws import CodeLaw, FlowCodes
from common.models.generator import gaussian
from common.models.velocity_model import VelocityModel
from learner.score_losses.denoisers import of_network, of_teacher
from learner.score_losses.losses import ScoreDistance, by_vectors_alone, fake_score_loss
from learner.score_losses.points import Points, TimeLaw, draw_points

LABEL_B = torch.tensor([0, 2, 1])


@dataclass(frozen=True)
class Scene:
    """Two networks, what the generator makes of noise, and what is drawn to judge it."""

    generator: VelocityModel
    guidance: VelocityModel
    law: CodeLaw
    points: Points
    vector_BLD: Tensor
    """With the generator's graph."""

    def loss(self, vector_BLD: Tensor, prefix_BLD: Tensor | None = None) -> Tensor:
        """The generator's, of every slot; the guidance network reads `prefix_BLD`, by default the
        vectors without gradient."""
        before_BLD = vector_BLD.detach() if prefix_BLD is None else prefix_BLD
        feature_BLC = self.guidance.features(LABEL_B, before_BLD)
        denoisers = of_teacher(self.law), of_network(self.guidance, feature_BLC)
        return ScoreDistance().loss(vector_BLD, *denoisers, self.points)


@pytest.fixture(params=["dd2_llamagen", "dd2_var"])
def scene(request, tiny):
    teacher_model = tiny(request.param[4:])
    generator, guidance = (velocity_model(request.param, teacher_model, seed=s) for s in (1, 2))
    spec, width = generator.spec, generator.code_width
    points = draw_points([4, 5, 6], spec.length, width, draws=2, times=TimeLaw(lowest=0.2))
    logit_NV = torch.randn(len(LABEL_B) * spec.length, spec.vocab_size)
    law = FlowCodes(generator.codebook_VD).law(logit_NV.log_softmax(-1))
    vector_BLD = generator.vectors(LABEL_B, gaussian([1, 2, 3], spec.length, width))
    return Scene(generator, guidance, law, points, vector_BLD)


def test_a_slots_loss_teaches_its_own_vector_alone(scene):
    leaf_BLD = scene.vector_BLD.detach().requires_grad_()
    for slot in (0, 2, scene.generator.spec.length - 1):
        (gradient_BLD,) = torch.autograd.grad(scene.loss(leaf_BLD)[:, slot].sum(), leaf_BLD)
        moved_L = gradient_BLD.abs().amax((0, 2))
        assert moved_L[slot] > 1e-4
        moved_L[slot] = 0
        assert not moved_L.any()
    leaking = scene.loss(leaf_BLD, leaf_BLD)[:, -1].sum()
    (gradient_BLD,) = torch.autograd.grad(leaking, leaf_BLD)
    assert gradient_BLD[:, 0].any(), "a prefix with gradient would have one"


def test_the_generators_step_teaches_no_guidance_network(scene):
    """It learns as from the gradient at its vectors, which stand for it meanwhile."""
    leaf_BLD = scene.vector_BLD.detach().requires_grad_()
    alone_B = by_vectors_alone(scene.vector_BLD, lambda v_BLD: scene.loss(v_BLD).sum(1))
    torch.testing.assert_close(alone_B, scene.loss(leaf_BLD).sum(1))
    (at_BLD,) = torch.autograd.grad(scene.loss(leaf_BLD).sum(), leaf_BLD)
    parameters = list(scene.generator.parameters())
    wanted = torch.autograd.grad(scene.vector_BLD, parameters, at_BLD, retain_graph=True)
    alone_B.sum().backward()
    assert all(parameter.grad is None for parameter in scene.guidance.parameters())
    for parameter, gradient in zip(parameters, wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_the_guidance_networks_step_teaches_no_generator(scene):
    feature_BLC = scene.guidance.features(LABEL_B, scene.vector_BLD.detach())
    loss_BL = fake_score_loss(scene.guidance, feature_BLC, scene.vector_BLD, scene.points)
    loss_BL.sum().backward()
    assert all(parameter.grad is not None for parameter in scene.guidance.parameters())
    assert all(parameter.grad is None for parameter in scene.generator.parameters())
