"""How far a student is from its teacher, and both from the data, in nats per token.

Shape letters: N sequences in all, B of a batch, L slots, V codes.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.data.tokens import load_tokens
from common.device import place
from common.errors import InputError
from common.exchange.condition import ConditionTables
from common.exchange.provenance import STUDENT
from common.exchange.trajectory import TrajectoryBatch, from_arrow, to_arrow
from common.files.tensors import load_tensors, save_tensors, state_digest
from common.models.backbone import Backbone
from common.models.decoding import DecodingConfig
from common.models.guidance import Guidance
from common.models.plan import DecodePlan
from common.randomness import derive_seed
from common.spec import SequenceSpec
from deploy.config import RunConfig
from deploy.report.grids import spread
from deploy.run_folder.workspace import Workspace
from deploy.stages.measured_rewards import compared_rewards, sample_rewards
from rollout.evaluation.likelihood import (
    LEAST,
    acceptance_of_rows,
    divergence_of_rows,
    entropy_of_rows,
    estimates,
    surprise_of_rows,
)
from rollout.evaluation.metrics import balanced_labels, image_seeds
from rollout.sampler import SamplingConfig, sample
from teacher_server.reward import RewardScorer
from teacher_server.teacher import guided_features

NUMBERS = 2**23
"""Probabilities of each model that exist at a time."""
OF_DATA = "_of_data"
"""Behind the name of a reward: that of data instead of samples."""


@dataclass(frozen=True)
class Sequences:
    """Labels and codes, by grid position, and what gives the order in which they were drawn."""

    label_N: Tensor
    cell_NL: Tensor
    seeds: list[int]

    def parts(self, count: int) -> Iterator["Sequences"]:
        """At most `count` at a time."""
        for first in range(0, len(self.seeds), count):
            rows = slice(first, first + count)
            yield Sequences(self.label_N[rows], self.cell_NL[rows], self.seeds[rows])


class LikelihoodProbe:
    """Compares students with the run's teacher, as its target distribution is (teacher.guidance),
    both without filters; all students are measured by the same labels, noise and sequences."""

    def __init__(self, config: RunConfig, workspace: Workspace, class_K: Tensor) -> None:
        """`class_K`: labels that have real images."""
        settings = config.evaluate
        self._config, self._workspace = config, workspace
        self._label_N = balanced_labels(settings.likelihood_samples, class_K)
        self._seed = derive_seed(config.seed, "likelihood")
        self._decoding = exact_decoding(config)
        self._device = place(settings.device)
        self._teacher_file = workspace.model(config, "teacher")
        self._teacher: Backbone | None = None
        self._rewards = sample_rewards(config, workspace)
        self._compared = compared_rewards(config, workspace)

    def of_student(self, student: Backbone) -> dict[str, float]:
        """`reverse_kl` KL(student || teacher), `acceptance` and `entropy` on the student's samples,
        `forward_kl` KL(teacher || student) on the teacher's, `data_nll` on held-out data where
        there is any, `reward_NAME` of each reward on the student's samples and on data
        (`reward_NAME_of_data`; of one that compares with data, there alone), all with standard
        errors."""
        teacher, target = self._loaded(), self._config.teacher.guidance
        rows: dict[str, list[Tensor]] = defaultdict(list)
        drawn = self._drawn(student, None)
        for part in self._parts(drawn):
            q_BLV = self._logprob(student, part, student, None)
            p_BLV = self._logprob(teacher, part, student, target)
            for name, value_B in compared(q_BLV, p_BLV).items():
                rows[name].append(value_B)
        for part in self._parts(self._of_teacher()):
            q_BLV = self._logprob(student, part, teacher, None)
            p_BLV = self._logprob(teacher, part, teacher, target)
            rows["forward_kl"].append(divergence_of_rows(p_BLV, q_BLV))
        found = {name: torch.cat(parts) for name, parts in rows.items()}
        judged = _judged(self._rewards, self._batches(student, drawn))
        found |= {f"reward_{name}": value for name, value in judged.items()}
        return estimates(found) | self._of_data(student)

    def of_teacher(self) -> dict[str, float]:
        """`data_nll`, and the rewards of its own samples and of data."""
        teacher = self._loaded()
        drawn = self._of_teacher() if self._rewards else None
        judged = {} if drawn is None else _judged(self._rewards, self._batches(teacher, drawn))
        found = {f"reward_{name}": value for name, value in judged.items()}
        return estimates(found) | self._of_data(teacher)

    def _of_data(self, model: Backbone) -> dict[str, float]:
        """`data_nll` -log q(x) of the test images' codes, or of the training images' where there
        are no others; the conditional model without guidance. Rewards there are what a student
        may be rewarded with at most for looking like the data."""
        data, found = self._data(), []
        for part in self._parts(data):
            token_BL = model.plan(part.seeds, self._decoding).to_slots(part.cell_NL)
            found.append(surprise_of_rows(self._logprob(model, part, model, None), token_BL))
        judged = _judged(self._rewards, self._batches(model, data))
        judged |= _judged(self._compared, self._with_themselves(model))
        ceilings = {f"reward_{name}{OF_DATA}": value for name, value in judged.items()}
        return estimates({"data_nll": torch.cat(found)} | ceilings)

    def _batches(self, model: Backbone, sequences: Sequences) -> Iterator[TrajectoryBatch]:
        for part in self._parts(sequences):
            yield _batch(model, part, model.plan(part.seeds, self._decoding))

    def _with_themselves(self, model: Backbone) -> Iterator[TrajectoryBatch]:
        """Training sequences as what they began as, with their numbers for ids."""
        data = load_tokens(self._workspace.existing_tokens())
        row_N = torch.tensor(spread(len(data), min(len(data), len(self._label_N))))
        seeds = image_seeds(self._seed, len(row_N))
        sequences = Sequences(data.label_N[row_N].long(), data.token_NAL[row_N, 0].long(), seeds)
        first = 0
        for batch in self._batches(model, sequences):
            id_B = row_N[first : first + len(batch)]
            first += len(batch)
            yield replace(batch, id_B=id_B, target_token_BL=batch.token_BL)

    def _parts(self, sequences: Sequences) -> Iterator[Sequences]:
        return sequences.parts(rows_together(self._teacher_file.spec))

    def _logprob(
        self, model: Backbone, part: Sequences, orders: Backbone, guidance: Guidance | None
    ) -> Tensor:
        """logprob_BLV of every slot, in the order in which `orders` decodes."""
        plan = orders.plan(part.seeds, self._decoding)
        batch = _batch(model, part, plan).to(self._device)
        tables = self._config.conditions.tables(model.spec.num_classes)
        if model is self._teacher:
            ids_B = tables.teacher_ids(part.label_N)
            batch = replace(
                batch, teacher_condition_B=None if ids_B is None else ids_B.to(self._device)
            )
        else:
            tables = tables.for_student()
        return guided_logprobs(model, batch, guidance, tables).cpu()

    def _loaded(self) -> Backbone:
        if self._teacher is None:
            self._teacher = self._teacher_file.load().to(self._device).eval()
        return self._teacher

    def _drawn(self, model: Backbone, guidance: Guidance | None) -> Sequences:
        """Samples of its plain distribution, or of the guided one."""
        seeds, size = image_seeds(self._seed, len(self._label_N)), self._config.evaluate.batch_size
        sampling = SamplingConfig(guidance=guidance, decoding=self._decoding)
        role = "teacher" if model is self._teacher else "student"
        table = self._config.conditions.of(role, model.spec.num_classes)
        cells = [
            sample(
                model, self._label_N[first : first + size], part, sampling, conditions=table
            ).cell_BL.cpu()
            for first in range(0, len(seeds), size)
            if (part := seeds[first : first + size])
        ]
        return Sequences(self._label_N, torch.cat(cells), seeds)

    def _of_teacher(self) -> Sequences:
        """The teacher's, drawn once and kept in the run folder."""
        path, teacher = self._workspace.teacher_samples, self._loaded()
        made_from: dict[str, Any] = {
            "teacher": state_digest(teacher),
            "seed": self._seed,
            "labels": self._label_N.tolist(),
            "target": self._config.teacher.model_dump(mode="json")["guidance"],
            "decoding": self._decoding.model_dump(mode="json"),
        }
        return kept(path, made_from, lambda: self._drawn(teacher, self._config.teacher.guidance))

    def _data(self) -> Sequences:
        workspace = self._workspace
        has_test = workspace.test_tokens.exists()
        data = load_tokens(workspace.test_tokens if has_test else workspace.existing_tokens())
        chosen = torch.tensor(spread(len(data), min(len(data), len(self._label_N))))
        seeds = image_seeds(self._seed, len(chosen))
        return Sequences(data.label_N[chosen].long(), data.token_NAL[chosen, 0].long(), seeds)


def exact_decoding(config: RunConfig) -> DecodingConfig:
    """The run's, where what is drawn is what the models say; else the family's own."""
    decoding = config.rollout.sampling.decoding
    return decoding if decoding.is_exact else DecodingConfig()


def rows_together(spec: SequenceSpec) -> int:
    """Sequences whose probabilities exist at a time."""
    return max(1, NUMBERS // (spec.length * spec.vocab_size))


@torch.no_grad()
def guided_logprobs(
    model: Backbone, batch: TrajectoryBatch, guidance: Guidance | None, tables: ConditionTables
) -> Tensor:
    """logprob_BLV of every slot, float32."""
    hidden_BLC = guided_features(model, batch, guidance, tables)
    return model.head(hidden_BLC).float().log_softmax(-1)


def compared(student_BLV: Tensor, teacher_BLV: Tensor) -> dict[str, Tensor]:
    """What is said of the student's samples, by row, from log-probabilities."""
    return {
        "reverse_kl": divergence_of_rows(student_BLV, teacher_BLV),
        "acceptance": acceptance_of_rows(student_BLV, teacher_BLV),
        "entropy": entropy_of_rows(student_BLV),
    }


def kept(path: Path, made_from: dict[str, Any], draw: Callable[[], Sequences]) -> Sequences:
    """What the file holds if it was made from just this, else drawn now and kept."""
    if path.exists():
        try:
            tensors, facts = load_tensors(path)
        except InputError:
            tensors, facts = {}, {}
        if facts.get("made_from") == made_from:
            seeds = [int(seed) for seed in tensors["seed"]]
            return Sequences(tensors["label"], tensors["cell"], seeds)
    drawn = draw()
    tensors = {"label": drawn.label_N, "cell": drawn.cell_NL, "seed": torch.tensor(drawn.seeds)}
    try:
        save_tensors(path, tensors, {"made_from": made_from})
    except InputError:  # no room: drawn again next time
        return drawn
    return drawn


def _judged(
    scorers: Mapping[str, RewardScorer], batches: Iterable[TrajectoryBatch]
) -> dict[str, Tensor]:
    """What every reward says, by row; of rows that it could not judge, nothing, and nothing of a
    reward that could judge hardly any."""
    found: dict[str, list[Tensor]] = {name: [] for name in scorers}
    for batch in batches if scorers else ():
        record = to_arrow(batch)
        for name, scorer in scorers.items():
            said = from_arrow(scorer.score(record)).sequence
            found[name].append(said[name][said[f"{name}_failed"] == 0].double())
    joined = {name: torch.cat(parts) for name, parts in found.items()}
    return {name: value for name, value in joined.items() if len(value) >= LEAST}


def _batch(model: Backbone, part: Sequences, plan: DecodePlan) -> TrajectoryBatch:
    rows, length = part.cell_NL.shape
    zero_B = torch.zeros(rows, dtype=torch.long)
    return TrajectoryBatch(
        spec=model.spec,
        id_B=torch.arange(rows),
        version_B=zero_B,
        label_B=part.label_N,
        context=(STUDENT,) * rows,
        policy=(STUDENT,) * rows,
        law=("exact",) * rows,
        prefix_B=zero_B,
        plan=plan,
        token_BL=plan.to_slots(part.cell_NL),
        logprob_BL=torch.zeros(rows, length),
    )
