"""The run's rewards as they are measured of models and of data, outside a run.

Those that look through the run's own classifier are left out where there is none: a study whose
features are others' trains none for its references.
"""

from common.data.tokens import load_tokens
from common.data.training_images import TrainingImages
from common.randomness import Draws
from deploy.config import RunConfig
from deploy.run_folder.workspace import Workspace
from teacher_server.reward import RewardConfig, RewardScorer
from teacher_server.scorer import ScorerFiles


class InOrder(Draws):
    """Index i is row i of the dataset, in its first view."""

    def row(self, index: int) -> int:
        return index

    def view(self, index: int, views: int) -> int:
        return 0


def sample_rewards(config: RunConfig, workspace: Workspace) -> dict[str, RewardScorer]:
    """Those of whole samples, by name; a sample that began with no data sequence can be compared
    with none."""
    return _built(config, workspace, compared=False)


def compared_rewards(config: RunConfig, workspace: Workspace) -> dict[str, RewardScorer]:
    """Those that compare a row with what it began as, by name; the ids of rows are numbers of the
    training dataset's.

    Raises:
        InputError: the training images are asked for, and are not there.
    """
    return _built(config, workspace, compared=True)


def _built(config: RunConfig, workspace: Workspace, *, compared: bool) -> dict[str, RewardScorer]:
    chosen = [
        scorer
        for scorer in config.scorers.values()
        if isinstance(scorer, RewardConfig)
        and scorer.reads_target == compared
        and ("classifier" not in scorer.networks() or workspace.classifier.exists())
    ]
    images = None
    if any(scorer.reads_pixels for scorer in chosen):
        data = load_tokens(workspace.existing_tokens())
        images = TrainingImages(config.images, config.tokens, data.spec, InOrder(0, len(data)))
    files = ScorerFiles(
        config.teacher,
        workspace.model(config, "teacher"),
        True,
        classifier=workspace.classifier,
        images=images,
    )
    return {scorer.kind: scorer.build(files) for scorer in chosen}
