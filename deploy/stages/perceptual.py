"""Networks by which an objective compares images: the run's own classifier, or LPIPS."""

from collections.abc import Mapping

import torch
from rich.console import Console

from common.config.parts import parts
from common.perceptual.classifier import frozen_classifier
from common.perceptual.lpips import LpipsConfig
from deploy.config import RunConfig
from deploy.run_folder.identity import network_of
from deploy.run_folder.workspace import Workspace
from deploy.stages.quality import own_classifier
from learner.resources import Perceptual


def compared_by(
    config: RunConfig, workspace: Workspace, contents: Mapping[str, str], target: Console
) -> str:
    """Which networks the run compares images by, for its report; its own classifier is trained
    where it is not there. `contents` are the digests of the run's identity."""
    found = [net.title(contents[network_of(key)]) for key, net in parts(config, LpipsConfig)]
    if config.uses_classifier:
        digest = own_classifier(config, workspace, target)["digest"]
        found.append(f"the run's own feature classifier (digest {digest})")
    return "; ".join(found)


def classifier_features(workspace: Workspace, device: torch.device) -> Perceptual:
    """The run's own classifier as a perceptual net; official extractors read integers, which carry
    no gradient.

    Raises:
        InputError: there is none; `varkd distill` trains it before it starts anything.
    """
    return frozen_classifier(workspace.classifier, device).perceptual
