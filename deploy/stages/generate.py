"""The teacher's own token dataset: sampled once, read by `contexts.sources.teacher` (SeqKD).

Shape letters: B sequences of a batch, L slots, n sequences of a part, N sequences.
"""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from common.artifacts.model_file import ModelFile
from common.data.tokens import (
    TokenDataset,
    TokenHeader,
    count_images,
    load_tokens,
    read_header,
    read_labels,
    write_tokens,
)
from common.device import place, precision
from common.errors import InputError
from common.exchange.condition import ConditionsConfig
from common.files.made_from import difference
from common.flow.laws import FlowCodes
from common.randomness import Draws, derive_seed
from common.spec import require_same_spec
from common.tokenization.codes import flow_codes
from deploy.backend.actor_pool import ActorPool
from deploy.backend.partitions import PartitionJob, Watch, join, parts_folder
from deploy.config import RunConfig
from deploy.run_folder.precision import settled_precision
from deploy.run_folder.workspace import Workspace
from deploy.stages.draft_file import DraftFile, acceptance
from deploy.stages.pairs import require_pairs
from rollout.contexts import teacher
from rollout.sampler import SamplingConfig, sample
from rollout.speculation import Acceptance

DECIDING = ("teacher", "sampling", "sequences", "labels", "conditions")
"""Facts of the file that a run must agree with; seed and precision may differ."""
LATER = frozenset({"labels"})
"""Facts that files of earlier versions do not have."""


@dataclass(frozen=True)
class SamplesPart:
    """Some sequences of the dataset and the file that they go to."""

    path: Path
    label_n: Tensor
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.seeds)


class TeacherSampler:
    """Holds the teacher on its device and samples one part after the other."""

    def __init__(
        self,
        file: ModelFile,
        sampling: SamplingConfig,
        batch_size: int,
        device: str,
        dtype: str,
        conditions: ConditionsConfig,
        codes: FlowCodes | None = None,
        draft: DraftFile | None = None,
    ) -> None:
        """`codes` are the tokenizer's, where sampling.flow carries noise to them."""
        teacher = file.load(precision(dtype)).to(place(device))
        self._teacher = teacher.requires_grad_(False)
        self._sampling = sampling
        self._batch_size = batch_size
        self._conditions = conditions.of("teacher", file.spec.num_classes)
        self._codes = codes
        self._draft = draft and draft.load(place(device), precision(dtype), conditions)

    def make(self, part: SamplesPart, watch: Watch = lambda done: None) -> None:
        """Write `part.path`; `watch` hears how many of its sequences are done."""
        cells: list[Tensor] = []
        acceptance = Acceptance()
        for first in range(0, len(part), self._batch_size):
            watch(first)
            rows = slice(first, first + self._batch_size)
            label_B, seeds = part.label_n[rows], part.seeds[rows]
            drawn = sample(
                self._teacher,
                label_B,
                seeds,
                self._sampling,
                conditions=self._conditions,
                codes=self._codes,
                draft=self._draft,
            )
            acceptance += drawn.acceptance or Acceptance()
            cells.append(drawn.cell_BL.cpu())
        facts = asdict(acceptance) if self._draft else {}
        seeds = self._codes is not None
        header = TokenHeader(self._teacher.spec, (), "none", facts=facts, seeds=seeds)
        rows = torch.cat(cells)[:, None], part.label_n
        if header.seeds:
            rows = (*rows, torch.tensor(part.seeds))
        write_tokens(part.path, header, [rows])


def generate(
    config: RunConfig, workspace: Workspace, target: Console, *, local: bool
) -> dict[str, Any]:
    """Sample the dataset into the run folder; a file that fits already is left as it is.

    Sequence i is a pure function of (seed, i): labels follow the training data's, epoch by epoch.
    Finished parts stay when it is interrupted, and are not made again by the same teacher.

    Raises:
        InputError: no source reads such a dataset, or something in the user's files.
        RunFailed: actors died again and again.
    """
    source = dataset_source(config)
    if source is None:
        raise InputError(
            "contexts.sources.teacher: no dataset of the teacher's sequences is read; give it a "
            "ratio and set its source to dataset"
        )
    path, file = workspace.teacher_tokens, workspace.model(config, "teacher")
    train = read_header(workspace.existing_tokens())
    require_same_spec(train.spec, file.spec, us="the token dataset", them=str(file.path))
    settled = settled_precision(config, target)
    draft = DraftFile.of(config, file, source.sampling)
    facts = _facts(settled, workspace, source, file) | (draft.facts() if draft else {})
    seeds = source.sampling.flow is not None
    header = TokenHeader(train.spec, train.classes, train.tokenizer, 1, facts, seeds)
    fresh, kept = not _holds(path, header, target), {}
    if fresh:
        parts = _plan(settled, workspace, facts)
        codes = flow_codes(workspace.existing_tokenizer()) if seeds else None
        job = _job(settled, file, source.sampling, local, codes, draft)
        kept = acceptance(job.finish(parts, target).values())
        join(path, header, parts)
        shutil.rmtree(parts_folder(path), ignore_errors=True)
    workspace.keep_config(config)
    return {"sequences": facts["sequences"], "fresh": fresh} | kept


def dataset_source(config: RunConfig) -> teacher.Config | None:
    """The source that reads the teacher's dataset, if it has a share."""
    for source in config.contexts.used:
        if isinstance(source, teacher.Config) and source.is_generated:
            return source
    return None


def load_generated(config: RunConfig, workspace: Workspace) -> TokenDataset | None:
    """The teacher's dataset of a run that reads one.

    Raises:
        InputError: it is missing, of other tokens, or was sampled by another teacher or otherwise.
    """
    source = dataset_source(config)
    if source is None:
        return None
    path = workspace.existing_generated()
    header, train = read_header(path), read_header(workspace.existing_tokens())
    require_same_spec(train.spec, header.spec, us="the token dataset", them=str(path))
    facts = _facts(config, workspace, source, workspace.model(config, "teacher"))
    wanted = {"tokenizer": train.tokenizer, **{name: facts.get(name) for name in DECIDING}}
    found = {"tokenizer": header.tokenizer, **header.facts}
    for name in wanted:
        if name in LATER and name not in found:
            continue
        if found.get(name) != wanted[name]:
            raise InputError(
                f"{path}: was made with {name} {found.get(name)}, but the run has {name} "
                f"{wanted[name]}; make it again with `varkd generate`, or change that back"
            )
    found = load_tokens(path)
    if config.objective.needs_pairs:
        table = config.conditions.of("teacher", train.spec.num_classes)
        teacher_file = workspace.model(config, "teacher")
        require_pairs(path, found, teacher_file, source.sampling, table)
    return found


def _holds(path: Path, header: TokenHeader, target: Console) -> bool:
    """Whether the file is there, whole, and of just this header; why not, if it is there."""
    if not path.exists():
        return False
    try:
        found = read_header(path)
        rows = count_images(path)
    except InputError as error:
        target.print(f"{error}; it is sampled anew")
        return False
    if found == header and rows == header.facts["sequences"]:
        return True
    changed = difference(_described(found), _described(header))
    target.print(f"{path}: sampled anew, for {changed or 'the tokens are of another tokenizer'}")
    return False


def _described(header: TokenHeader) -> dict[str, Any]:
    return {"spec": header.spec.as_dict(), **header.facts}


def _facts(
    config: RunConfig, workspace: Workspace, source: teacher.Config, file: ModelFile
) -> dict[str, Any]:
    """All that decides what the sequences are, as JSON."""
    label_N = read_labels(workspace.existing_tokens())
    return {
        "teacher": file.digest(),
        "sampling": _described_sampling(source.sampling),
        "sequences": source.sequences or len(label_N),
        "labels": hashlib.blake2b(label_N.numpy().tobytes(), digest_size=8).hexdigest(),
        "seed": config.seed,
        "dtype": config.generating.dtype,
        **config.made_from_conditions,
    }


def _described_sampling(sampling: SamplingConfig) -> dict[str, Any]:
    """Datasets that were drawn slot by slot do not say so: there was nothing else when the first
    were made."""
    found = sampling.model_dump(mode="json")
    if found["decoding"].get("sjd", ...) is None:
        del found["decoding"]["sjd"]
    return {name: value for name, value in found.items() if (name, value) != ("flow", None)}


def _plan(config: RunConfig, workspace: Workspace, facts: dict[str, Any]) -> list[SamplesPart]:
    """Cut the dataset into parts, in a folder named after all that decides what they hold."""
    label_N = read_labels(workspace.train_tokens)
    count, size = facts["sequences"], config.tokens.part_images
    hasher = hashlib.sha256(json.dumps({**facts, "part": size}, sort_keys=True).encode())
    folder = parts_folder(workspace.teacher_tokens) / hasher.hexdigest()[:16]
    draws = Draws(derive_seed(config.seed, "generate"), len(label_N))
    parts = []
    for number, first in enumerate(range(0, count, size)):
        indices = range(first, min(first + size, count))
        label_n = label_N[torch.tensor([draws.row(index) for index in indices])]
        seeds = tuple(draws.noise_seed(index) for index in indices)
        parts.append(SamplesPart(folder / f"part-{number:05d}.parquet", label_n, seeds))
    return parts


def _job(
    config: RunConfig,
    file: ModelFile,
    sampling: SamplingConfig,
    local: bool,
    codes: FlowCodes | None,
    draft: DraftFile | None,
) -> PartitionJob:
    own = config.generating
    return PartitionJob(
        config,
        partial(
            TeacherSampler,
            file,
            sampling,
            own.batch_size,
            own.device,
            own.dtype,
            config.conditions,
            codes,
            draft,
        ),
        ActorPool("generate", own.cpus, own.gpus, most=own.workers),
        section="generate",
        lower="generate.batch_size or generate.workers",
        local=local,
    )
