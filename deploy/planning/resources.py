"""What every role of a run needs: CPUs, GPUs, host memory and GPU memory.

Tensors are counted by running each role's own code on models without content
(deploy/planning/memory.py); what lives outside of tensors is a constant. Nothing is read and
nothing wide is allocated.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial

from common.device import precision
from common.errors import InputError
from common.exchange.record_size import bytes_per_image
from common.models.backbone import Backbone, BackboneConfig
from common.models.generator import Generator
from common.spec import SequenceSpec
from deploy.backend.bundles import Bundles, run_bundles
from deploy.config import RunConfig
from deploy.planning.blank_shards import gathered_bytes, is_sharded
from deploy.planning.forced_passes import forced_bytes, forced_sources
from deploy.planning.hardware import MB
from deploy.planning.memory import (
    chain_bytes,
    learning_bytes,
    scoring_bytes,
    scoring_images,
)
from deploy.planning.milestone_memory import milestone_bytes
from deploy.planning.sampling_memory import decoding_bytes, generating_bytes, packed_weight_bytes
from deploy.planning.skeletons import blank_student, parameters, skeleton, state_bytes
from learner.objective import Student

LOWER = {
    "teacher": "teacher.batching.max_tokens or rollout.batch_size",
    "rollout": "rollout.workers or rollout.batch_size",
    "learner": "learner.micro_batch or learner.chunk_tokens",
}
"""Config fields that make an actor of the section smaller."""
PROCESS_MB = 350
"""Resident memory of a Ray worker process with torch loaded, models not counted (measured)."""
HOST_SLACK = 1.2
"""What kernels' scratch and freed but kept memory add to live tensors (measured: 1.0 to 1.2)."""
HEAP_MB = 128
"""Blocks below 32 MB, which the C allocator keeps, add up to this (measured: 40 to 190)."""
SERVICE_MB = 100
"""The same for services, which do not load torch (measured)."""
CUDA_HOST_MB = 3000
"""The same for a process that uses a GPU (typical of torch's CUDA builds, not measured here)."""
CUDA_MB = 1024
"""GPU memory beside torch's tensors: context, cuBLAS, NCCL (typical, not measured here)."""
CUDA_SLACK = 1.1
"""What torch's caching allocator reserves over what is alive (typical, not measured here)."""


@dataclass(frozen=True, slots=True)
class Need:
    """Actors of one role: what each reserves, and the memory that it takes beside."""

    bundles: Bundles
    host_mb: float
    gpu_mb: float
    lower: str
    """Config fields that make it smaller."""

    @property
    def role(self) -> str:
        return self.bundles.role

    @property
    def cpus(self) -> float:
        return self.bundles.cpus

    @property
    def gpus(self) -> float:
        return self.bundles.gpus

    @property
    def is_anywhere(self) -> bool:
        """Ray may put what reserves nothing on any node."""
        return not (self.bundles.resources or self.gpu_mb)


@dataclass(frozen=True)
class Sizing:
    """What the roles of a run hold, in bytes."""

    config: RunConfig
    spec: SequenceSpec
    data_bytes: int = 0
    """Token data in memory; 0 where its size is not known."""
    uncounted: dict[str, str] = field(default_factory=dict)
    """Scorers that cannot be counted, and why; known after `needs`."""

    @cached_property
    def teacher(self) -> Backbone:
        """On the meta device, float32."""
        return skeleton(self.config.models.teacher, self.spec)

    @cached_property
    def student(self) -> Student:
        return blank_student(self.config, self.spec)

    @property
    def row_bytes(self) -> int:
        """One scored image on the wire."""
        config, length, generator = self.config, self.spec.length, self._generator
        width = self.teacher.head.in_features
        per_token = per_row = 0
        if config.asks_teacher:
            per_token = config.teacher.signal.bytes_per_token(width, self.spec.vocab_size)
            per_token += 4 * config.reads_entropy
        for scorer in config.scoring.values():
            per_token += 4 * len(scorer.adds_to_tokens())
            per_row += 4 * len(scorer.sequence_columns)
        return bytes_per_image(
            self.spec,
            length * per_token + per_row,
            noise=config.rollout.keep_noise,
            groups=config.schedule().group_size > 1,
            seeds=generator is not None or any(source.has_pairs for source in config.contexts.used),
            targets=config.rollout.keep_target,
            inputs=any(source.has_input for source in forced_sources(config)),
            code_width=0 if generator is None else generator.code_width,
        )

    @property
    def _generator(self) -> Generator | None:
        """The student, where workers make its sequences in one pass."""
        found = self.student
        return found if isinstance(found, Generator) and self.config.samples_student else None

    @property
    def version_bytes(self) -> int:
        """One published version of the student."""
        if not self.config.samples_student:
            return 0
        return state_bytes(self.student, precision(self.config.rollout.dtype))

    @property
    def versions(self) -> int:
        """Versions in the weight store at a time."""
        schedule = self.config.schedule()
        return schedule.versions_kept // schedule.publish_every + 1

    @property
    def shared_bytes(self) -> int:
        """In Ray's object store, were it all on one node: versions, unless they are files, records
        and token data."""
        records = self.config.schedule().most_outstanding * self.row_bytes
        return self._stored_bytes + records + self.data_bytes

    @property
    def filed_bytes(self) -> int:
        """Of the disk of `rollout.weights_folder`: the store's versions, and the one before or the
        one that is being written."""
        has_files = self.config.rollout.weights_folder is not None
        return has_files * (self.versions + 1) * self.version_bytes

    @property
    def _stored_bytes(self) -> int:
        return 0 if self.filed_bytes else self.versions * self.version_bytes

    def needs(self, on_gpu: Callable[[str, float], bool]) -> list[Need]:
        """Every kind of actor, in the order in which the command asks for them; `on_gpu` tells from
        a role's `device` and `gpus` where it computes."""
        return self._needs(lambda bundles: self._memory_mb(bundles, on_gpu))

    def reservations(self) -> list[Need]:
        """The same without memory, which takes its time to find out: what Ray looks at."""
        return self._needs(lambda bundles: (0.0, 0.0))

    def _needs(self, memory_mb: Callable[[Bundles], tuple[float, float]]) -> list[Need]:
        """`memory_mb` gives (host_mb, gpu_mb) of one actor."""
        buffered = self.config.schedule().most_outstanding * self.row_bytes
        services = (
            ("buffer", 1, buffered),
            ("weights", 1, self._stored_bytes),
            ("ledger, metrics", 2, 0),
        )
        computing = [
            Need(bundles, *memory_mb(bundles), lower=LOWER.get(bundles.section, bundles.fields))
            for bundles in run_bundles(self.config)
        ]
        serving = [
            Need(Bundles("", count, 0, 0, role), SERVICE_MB + held / MB, 0, "learner.max_staleness")
            for role, count, held in services
        ]
        return computing + serving

    def _memory_mb(
        self, bundles: Bundles, on_gpu: Callable[[str, float], bool]
    ) -> tuple[float, float]:
        sections = {"rollout": self.config.rollout, "learner": self.config.learner}
        gpu = on_gpu(sections.get(bundles.section, self.config.teacher).device, bundles.gpus)
        count = {
            "teacher": self._teacher_mb,
            "rollout": self._worker_mb,
            "learner": self._learner_mb,
        }
        name = bundles.section.removeprefix("scorers.")
        return count.get(bundles.section, partial(self._scorer_mb, name))(gpu)

    def _teacher_mb(self, gpu: bool) -> tuple[float, float]:
        dtype = precision(self.config.teacher.dtype)
        head = skeleton(self.config.models.teacher, self.spec).head
        teacher = skeleton(self.config.models.teacher, self.spec).to(dtype).requires_grad_(False)
        weights = state_bytes(teacher) + state_bytes(head)
        # Records as they came, as tensors, and scored.
        records = 3 * scoring_images(self.config, self.spec.length) * self.row_bytes
        scoring = scoring_bytes(self.config, teacher.eval(), head)
        if gpu:
            return _process_mb(True, computing=weights + scoring, starting=weights, beside=records)
        return _process_mb(False, computing=weights + max(scoring, records), starting=weights)

    def _scorer_mb(self, name: str, gpu: bool) -> tuple[float, float]:
        """A scorer that is not the teacher: all its callers at a time, each with a record."""
        rollout, replicas = self.config.rollout, self.config.scorers[name].actors
        callers = rollout.workers * max(1, rollout.in_flight)
        each = -(-callers // replicas(self.config.teacher).replicas)
        records = 3 * each * rollout.batch_size * self.row_bytes
        try:
            holding, scoring = chain_bytes(self.config, name, self.spec, self.teacher.head)
        except InputError as error:  # e.g. a file of its own, which is on the cluster
            self.uncounted[name] = str(error)
            holding = scoring = 0
        computing = holding + each * scoring
        return _process_mb(gpu, computing=computing, starting=holding, beside=records)

    def _worker_mb(self, gpu: bool) -> tuple[float, float]:
        dtype, student = precision(self.config.rollout.dtype), self.config.models.student
        weights = starting = decoding = held = packed = 0
        sampler: Backbone | None = None
        if (generator := self._generator) is not None:
            weights = state_bytes(generator, dtype)
            starting = max(state_bytes(generator) + weights, 3 * weights)
            decoding = generating_bytes(self.config, generator)
        elif isinstance(student, BackboneConfig):
            sampler = skeleton(student, self.spec).to(dtype).eval()
            weights, packed = state_bytes(sampler), packed_weight_bytes(self.config, sampler)
            # Built in float32, then cast; later what it has read of the store counts as its own:
            # the versions that it samples with and loads, and where one lay before.
            starting = max(state_bytes(self.student) + weights, 3 * weights)
            decoding = decoding_bytes(self.config, sampler)
            decoding = max(decoding, forced_bytes(self.config, sampler))
        if self.config.contexts.teacher_sampling is not None:
            teacher = skeleton(self.config.models.teacher, self.spec).to(dtype).eval()
            held = state_bytes(teacher)
            taken = decoding_bytes(self.config, teacher, "teacher", sampler)
            decoding = max(decoding, taken)
        if not gpu:
            decoding += packed
        starting = max(starting, held) if gpu else starting + held
        return _process_mb(gpu, computing=weights + held + decoding, starting=starting)

    def _learner_mb(self, gpu: bool) -> tuple[float, float]:
        device = "cuda" if gpu else "cpu"
        settings = self.config.learner.chunked(self.spec.vocab_size, device)
        student = blank_student(self.config, self.spec).train()
        head = skeleton(self.config.models.teacher, self.spec).head.requires_grad_(False)
        weights, gradients = state_bytes(student), parameters(student) * 4
        held = 2 * weights + 2 * gradients  # with average and AdamW's moments
        config = self.config.model_copy(update={"learner": settings})
        computing = learning_bytes(config, student, head)
        whole = 0  # what a rank that holds a part loads, and rank 0 gathers to publish and store
        if is_sharded(settings):
            held, gradients = (size // settings.world_size for size in (held, gradients))
            whole = weights
            computing += gathered_bytes(settings, student)
        else:
            computing += weights
        if gpu:  # whose AdamW works on all tensors at once
            computing = max(computing, held + 2 * gradients)
        drawn, shown = milestone_bytes(self.config, student)  # of rank 0, between two steps
        computing = max(computing, held + drawn) + state_bytes(head)
        # As records, as tensors, and joined, while the step before is still learnt from.
        beside = 4 * settings.global_batch_size // settings.world_size * self.row_bytes
        # A snapshot is read on the host, and copied there to be written; versions are packed, sent,
        # and held where leases are pinned to them, once more in what is written.
        pinned = 2 * (settings.max_staleness + 1) if self.config.schedule().pins_earlier else 0
        starting = held + whole + max(state_bytes(head), 3 * self.version_bytes)
        computing += 0 if gpu else held + whole
        beside += pinned * self.version_bytes + shown
        return _process_mb(gpu, computing=computing, starting=starting, beside=beside)


def _process_mb(
    gpu: bool, *, computing: int, starting: int, beside: int = 0
) -> tuple[float, float]:
    """(host_mb, gpu_mb) of a process from the bytes that it holds while computing on its device,
    while loading on the host, and on the host at all times."""
    if gpu:
        return CUDA_HOST_MB + (starting + beside) / MB, CUDA_MB + CUDA_SLACK * computing / MB
    held_mb = max(computing, starting) / MB
    return PROCESS_MB + HOST_SLACK * held_mb + min(held_mb, HEAP_MB) + beside / MB, 0.0
