"""Whether the decoded image shows the class that was asked for.

The reward is the log-probability of the row's label under the run's own feature classifier, in
nats. A row without a label may show any class: its reward is 0, the logarithm of all.

What a student is rewarded by is no fair judge of it any more: features of this network say less
about such a run (docs/method.md, "Rewards").

Shape letters: B sequences, K classes.
"""

import torch

from common.exchange.trajectory import TrajectoryBatch
from teacher_server.drawing import Drawing
from teacher_server.reward import Judge, Judged, RewardConfig
from teacher_server.scorer import ScorerFiles


class Config(RewardConfig):
    needs_teacher = False

    def networks(self) -> frozenset[str]:
        return frozenset({"classifier"})

    def judge(self, files: ScorerFiles) -> Judge:
        drawing = Drawing.of(files)
        network = files.load_classifier(drawing.device)

        def of_label(batch: TrajectoryBatch) -> Judged:
            parts = drawing.pixels(batch).split(drawing.tokenizer.images_at_once)
            logprob_BK = torch.cat([network(part).log_softmax(-1).cpu() for part in parts])
            has_label_B = batch.label_B < logprob_BK.shape[1]
            label_B1 = batch.label_B.clamp_max(logprob_BK.shape[1] - 1)[:, None]
            return Judged(logprob_BK.gather(1, label_B1)[:, 0].masked_fill(~has_label_B, 0))

        return of_label
