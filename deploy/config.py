"""The whole run in one validated object; every command reads the sections it needs."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializeAsAny, model_validator

from common.config.plugins import from_package
from common.config.quantities import (
    Batch,
    Count,
    CountOrNone,
    Cpus,
    Gigabytes,
    Gpus,
    Megabytes,
    Processes,
    Seconds,
    Seed,
)
from common.config.schema import Config, UserPath
from common.data.token_source import TokenSourceConfig
from common.data.token_sources import images as image_tokens
from common.exchange.condition import ConditionsConfig
from common.exchange.conditions import classes
from common.exchange.schedule import Schedule
from common.images.opening import ImagesConfig
from common.models.backbone import BackboneConfig
from common.tokenization.tokenizer import TokenizerConfig
from learner.config import AnyObjective, LearnerConfig
from learner.pretrain import PretrainConfig
from learner.tokenizer_training import TokenizerTrainingConfig
from rollout.config import RolloutConfig
from rollout.context import ContextsConfig
from rollout.evaluation.metrics import EvaluateConfig
from rollout.prefix import PrefixDistribution
from rollout.sampler import SamplingConfig
from teacher_server.scorer import ScorerConfig
from teacher_server.scorers import teacher as teacher_scorer
from teacher_server.teacher import TeacherConfig

AnyBackbone = Annotated[SerializeAsAny[BackboneConfig], from_package("common.models.backbones")]
AnyTokenizer = Annotated[
    SerializeAsAny[TokenizerConfig], from_package("common.tokenization.tokenizers")
]
AnyTokenSource = Annotated[
    SerializeAsAny[TokenSourceConfig], from_package("common.data.token_sources", default="images")
]
AnyConditions = Annotated[
    SerializeAsAny[ConditionsConfig], from_package("common.exchange.conditions", default="classes")
]
AnyScorer = Annotated[SerializeAsAny[ScorerConfig], from_package("teacher_server.scorers")]


class ModelsConfig(Config):
    """Teacher and student must speak the same tokens, not the same family."""

    teacher: AnyBackbone
    """The large model."""
    student: AnyBackbone
    """The small one."""


class PretrainsConfig(Config):
    tokenizer: TokenizerTrainingConfig = TokenizerTrainingConfig()
    """Reconstruction, for kinds of tokenizers that are trained."""
    teacher: PretrainConfig = PretrainConfig()
    """Maximum likelihood of the teacher."""
    student: PretrainConfig = PretrainConfig()
    """Maximum likelihood of the student, before distillation."""


class BufferConfig(Config):
    max_mb: Megabytes = 2048.0
    """Scored records held before rollout has to wait."""


class SampleConfig(Config):
    per_class: CountOrNone = 8
    """Images per class."""
    batch_size: Batch | None = None
    """Images drawn together; by default evaluate.batch_size."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where they are drawn."""
    sampling: SamplingConfig | None = None
    """How they are drawn; by default as `varkd evaluate` does, by evaluate.sampling."""


class GenerateConfig(Config):
    """What is left out is as in [rollout]: there the student samples, here the teacher."""

    workers: Processes | None = None
    """Actors of `varkd generate`; by default rollout.workers."""
    batch_size: Batch | None = None
    """Sequences sampled together; by default rollout.batch_size."""
    device: Literal["auto", "cpu", "cuda"] | None = None
    """Where the teacher samples; by default rollout.device."""
    dtype: Literal["auto", "float32", "bfloat16"] | None = None
    """Precision of sampling; by default rollout.dtype."""
    cpus: Cpus | None = None
    """Logical CPUs reserved per actor, and threads that it computes with; by default
    rollout.cpus."""
    gpus: Gpus | None = None
    """GPUs (or a fraction) reserved per actor; by default rollout.gpus."""


class ClusterConfig(Config):
    nodes: Processes = 1
    """Nodes, all alike; the driver is on the first one."""
    cpus: Processes | None = None
    """CPUs of a node; by default this machine's, and on one node as many as the actors want."""
    gpus: Annotated[int, Field(ge=0, le=64)] | None = None
    """GPUs of a node; by default this machine's."""
    gpu_memory_gb: Gigabytes | None = None
    """Memory of a GPU; runs that need more are refused."""
    memory_gb: Gigabytes | None = None
    """Host memory of a node; by default what is free on this machine. Runs that need more are
    refused."""
    data_images: Count | None = None
    """Training images, for a dry run where the data is not at hand."""
    wait_seconds: Seconds = 600.0
    """How long a command waits until a cluster that it joined has room for its actors; on one that
    it starts itself at most a minute."""
    object_store_mb: Megabytes = 512.0
    """Shared memory of a Ray cluster that the command starts itself."""

    @property
    def is_declared(self) -> bool:
        """Whether this describes another machine than the one that the command runs on."""
        return self.nodes > 1 or bool(self.cpus or self.gpu_memory_gb) or self.gpus is not None


class RunConfig(Config):
    seed: Seed = 0
    """Everything random in a run is a function of this."""
    out: UserPath | None = None
    """Run folder; by default runs/<name of the config file>."""
    plugins: tuple[str, ...] = ()
    """Packages of one's own that hold plug-ins, each an importable name or a folder beside this
    file or in the working directory, with folders such as objectives/ or backbones/ in it."""
    images: ImagesConfig = ImagesConfig()
    """Where real images come from."""
    tokenizer: AnyTokenizer
    """How images become codes."""
    tokens: AnyTokenSource = image_tokens.Config()
    """Which codes of the training images, and how `varkd tokenize` makes them."""
    models: ModelsConfig
    """Sizes of teacher and student."""
    pretrain: PretrainsConfig = PretrainsConfig()
    """Stage 0: maximum likelihood."""
    conditions: AnyConditions = classes.Config()
    """What labels stand for."""
    contexts: ContextsConfig
    """Which prefixes the student is trained on."""
    rollout: RolloutConfig = RolloutConfig()
    """Sampling workers."""
    teacher: TeacherConfig = TeacherConfig()
    """Teacher servers."""
    scorers: dict[str, AnyScorer] = Field(default={"teacher": teacher_scorer.Config()})
    """What looks at every sample on its way to the learner, in this order; names are free."""
    buffer: BufferConfig = BufferConfig()
    """Between teacher and learner."""
    objective: AnyObjective
    """The loss."""
    learner: LearnerConfig = LearnerConfig()
    """Optimisation, publishing, staleness."""
    generate: GenerateConfig = GenerateConfig()
    """Actors of `varkd generate`."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Metrics."""
    sample: SampleConfig = SampleConfig()
    """Grids of `varkd sample`."""
    cluster: ClusterConfig = ClusterConfig()
    """The machines."""

    @property
    def generating(self) -> RolloutConfig:
        """[generate] with what it leaves to [rollout]."""
        return self.rollout.model_copy(update=self.generate.model_dump(exclude_none=True))

    @property
    def reads_entropy(self) -> bool:
        """Whether anything reads the entropy of the teacher's distributions."""
        scorers = any(scorer.reads_entropy for scorer in self.scorers.values())
        return scorers or self.objective.reads_entropy()

    @property
    def made_from_conditions(self) -> dict[str, Any]:
        """[conditions] among what decides the contents of a file; classes are what files are of
        that were made before there was anything else."""
        is_usual = self.conditions.kind == "classes"
        return {} if is_usual else {"conditions": self.conditions.model_dump(mode="json")}

    def schedule(self) -> Schedule:
        return Schedule(
            steps=self.learner.steps,
            global_batch_size=self.learner.global_batch_size,
            lease_size=self.rollout.batch_size,
            max_staleness=self.learner.max_staleness,
            publish_every=self.learner.publish_every,
            ordered=self.learner.ordered,
            group_size=self.rollout.group.size,
        )

    @model_validator(mode="after")
    def _one_scorer_is_the_teacher(self) -> Self:
        found = [name for name, scorer in self.scorers.items() if scorer.kind == "teacher"]
        if len(found) != 1:
            raise ValueError(
                f"scorers has {len(found)} tables of kind teacher ({', '.join(self.scorers)}), but "
                'a run has one teacher; give it just one, [scorers.teacher] with kind = "teacher"'
            )
        return self

    @model_validator(mode="after")
    def _leases_fill_a_step(self) -> Self:
        images, lease = self.learner.global_batch_size, self.rollout.batch_size
        if images % (lease * self.learner.world_size):
            raise ValueError(
                f"learner.global_batch_size is {images}, but must be a multiple of "
                f"rollout.batch_size {lease} times learner.world_size {self.learner.world_size}"
            )
        return self

    @model_validator(mode="after")
    def _groups_fill_a_lease(self) -> Self:
        lease, size = self.rollout.batch_size, self.rollout.group.size
        if lease % size:
            raise ValueError(
                f"rollout.batch_size is {lease}, but must be a multiple of rollout.group.size "
                f"{size}, so that a group is sampled, scored and trained whole"
            )
        return self

    @model_validator(mode="after")
    def _publishing_meets_the_bound(self) -> Self:
        every, lag = self.learner.publish_every, self.learner.max_staleness
        if every - 1 > lag:
            raise ValueError(
                f"learner.publish_every is {every}, so weights get up to {every - 1} steps old, "
                f"but learner.max_staleness allows {lag}; publish more often or raise max_staleness"
            )
        return self

    @model_validator(mode="after")
    def _enough_workers(self) -> Self:
        if self.rollout.min_workers > self.rollout.workers:
            raise ValueError(
                f"rollout.min_workers is {self.rollout.min_workers}, but rollout.workers is "
                f"{self.rollout.workers}"
            )
        return self

    @model_validator(mode="after")
    def _contexts_suit_the_objective(self) -> Self:
        self.objective.check(self.contexts.policies())
        return self

    @model_validator(mode="after")
    def _aligned_prefixes_end_with_rows(self) -> Self:
        for kind, source in self.contexts.sources.items():
            if not isinstance(source, PrefixDistribution) or source.align == "none":
                continue
            if not self.models.student.has_rows:
                raise ValueError(
                    f"contexts.sources.{kind}.align is {source.align}, but a "
                    f"{self.models.student.kind} does not decode row by row; set it to none"
                )
            source.lengths(self.tokenizer.describe(self.images.size))
        return self

    @model_validator(mode="after")
    def _policy_gradients_see_plain_samples(self) -> Self:
        if "behaviour" in self.objective.columns and not self.rollout.sampling.is_plain:
            raise ValueError(
                f"objective.kind={self.objective.kind} corrects by the probability with which the "
                "student itself drew a code, but rollout.sampling changes that distribution; leave "
                "rollout.sampling at its defaults, or choose another objective"
            )
        return self
