"""The whole run in one validated object; every command reads the sections it needs."""

from functools import partial
from typing import Annotated, Any, Self

from pydantic import Field, SerializeAsAny, model_validator

from common.config.parts import parts
from common.config.plugins import from_package, named_by_kind
from common.config.quantities import Seed
from common.config.schema import Config, UserPath
from common.data.token_source import TokenSourceConfig
from common.data.token_sources import images as image_tokens
from common.exchange.condition import ConditionsConfig
from common.exchange.conditions import classes
from common.exchange.schedule import Schedule
from common.images.opening import ImagesConfig
from common.models.backbone import BackboneConfig
from common.models.generator import GeneratorConfig
from common.models.one_pass import OnePassConfig
from common.perceptual.lpips import LpipsConfig
from common.tokenization.tokenizer import TokenizerConfig
from deploy.agreement.contexts import (
    require_exact,
    require_guesses,
    require_labels,
    require_one_input,
    require_passes,
    require_rows,
)
from deploy.agreement.leases import require_leases, require_workers
from deploy.agreement.one_pass import (
    pairs_of,
    require_classes,
    require_newest,
    require_pairs,
    require_readable,
    require_steps,
)
from deploy.agreement.rewards import require_rewards, require_targets, settled_targets
from deploy.agreement.secrets import require_secret
from deploy.logger import LoggerConfig
from deploy.sections import (
    BufferConfig,
    ClusterConfig,
    GenerateConfig,
    PretrainsConfig,
    SampleConfig,
)
from learner.config import AnyObjective, LearnerConfig
from rollout.config import RolloutConfig
from rollout.context import ContextsConfig
from rollout.evaluation.metrics import EvaluateConfig
from teacher_server.scorer import ScorerConfig
from teacher_server.scorers import teacher as teacher_scorer
from teacher_server.teacher import TeacherConfig

AnyBackbone = Annotated[SerializeAsAny[BackboneConfig], from_package("common.models.backbones")]
AnyStudent = Annotated[
    SerializeAsAny[BackboneConfig | GeneratorConfig],
    from_package(("common.models.backbones", "common.models.generators")),
]
AnyTokenizer = Annotated[
    SerializeAsAny[TokenizerConfig], from_package("common.tokenization.tokenizers")
]
AnyTokenSource = Annotated[
    SerializeAsAny[TokenSourceConfig], from_package("common.data.token_sources", default="images")
]
AnyConditions = Annotated[
    SerializeAsAny[ConditionsConfig], from_package("common.exchange.conditions", default="classes")
]
AnyLoggers = Annotated[dict[str, SerializeAsAny[LoggerConfig]], named_by_kind("deploy.loggers")]
AnyScorer = Annotated[SerializeAsAny[ScorerConfig], from_package("teacher_server.scorers")]


class ModelsConfig(Config):
    """Teacher and student must speak the same tokens, not the same family."""

    teacher: AnyBackbone
    """The large model."""
    student: AnyStudent
    """The small one, or one of the teacher's size that needs one pass for an image."""

    @model_validator(mode="after")
    def _one_pass_students_are_as_large_as_the_teacher(self) -> Self:
        if not isinstance(self.student, OnePassConfig):
            return self
        return self.model_copy(update={"student": self.student.sized_as(self.teacher)})


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
    loggers: AnyLoggers = Field(default={})
    """Where metrics go beside the run folder; tables by file name in deploy/loggers."""

    @property
    def generating(self) -> RolloutConfig:
        """[generate] with what it leaves to [rollout]."""
        return self.rollout.model_copy(update=self.generate.resources)

    @property
    def scoring(self) -> dict[str, AnyScorer]:
        """The scorers that records pass: none, where they have passed them already, and not the
        teacher, where nobody asks it."""
        if self.rollout.replay is not None:
            return {}
        others = [scorer for scorer in self.scorers.values() if scorer.kind != "teacher"]
        asked = self.objective.wants_scores() or any(scorer.needs_teacher for scorer in others)
        return {n: s for n, s in self.scorers.items() if asked or s.kind != "teacher"}

    @property
    def asks_teacher(self) -> bool:
        """Whether records pass the teacher."""
        return any(scorer.kind == "teacher" for scorer in self.scoring.values())

    @property
    def reads_pairs(self) -> bool:
        """Whether all rows come from the teacher's dataset."""
        return all(source.is_generated for source in self.contexts.used)

    @property
    def samples_student(self) -> bool:
        """Whether workers hold the student; one of one pass may learn from the teacher alone."""
        if self.rollout.replay is not None:
            return False
        if isinstance(self.models.student, BackboneConfig):
            return True
        return any(source.sampler == "student" for source in self.contexts.used)

    @property
    def reads_entropy(self) -> bool:
        """Whether anything reads the entropy of the teacher's distributions."""
        scorers = any(scorer.reads_entropy for scorer in self.scoring.values())
        return scorers or self.objective.reads_entropy()

    @property
    def uses_classifier(self) -> bool:
        """Whether training looks through the run's own classifier."""
        scorers = any("classifier" in scorer.networks() for scorer in self.scoring.values())
        return scorers or "perceptual" in self.objective.resources()

    @property
    def compares_pixels(self) -> bool:
        """Whether a scorer looks at the training images."""
        return any(scorer.reads_pixels for scorer in self.scoring.values())

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
            phases=self.objective.phases(),
        )

    @model_validator(mode="after")
    def _one_scorer_is_the_teacher(self) -> Self:
        """By default the first."""
        found = [name for name, scorer in self.scorers.items() if scorer.kind == "teacher"]
        if len(found) > 1 or (not found and "teacher" in self.scorers):
            raise ValueError(
                f"scorers has {len(found)} tables of kind teacher ({', '.join(self.scorers)}), but "
                'a run has one teacher; give it just one, [scorers.teacher] with kind = "teacher"'
            )
        if found:
            return self
        scorers = {"teacher": teacher_scorer.Config(), **self.scorers}
        return self.model_copy(update={"scorers": scorers})

    @model_validator(mode="after")
    def _leases_have_a_size(self) -> Self:
        learner = self.learner
        rollout = self.rollout.sized(learner.global_batch_size, learner.world_size)
        return self if rollout is self.rollout else self.model_copy(update={"rollout": rollout})

    @model_validator(mode="after")
    def _targets_are_settled(self) -> Self:
        scorers = settled_targets(self.scorers, self.tokens)
        return self if scorers == self.scorers else self.model_copy(update={"scorers": scorers})

    @model_validator(mode="after")
    def _targets_are_kept_for_who_reads_them(self) -> Self:
        scorers = any(scorer.reads_target for scorer in self.scoring.values())
        asks = scorers or self.objective.reads_target or self.teacher.peek > 0
        if self.rollout.keep_target or not asks:
            return self
        rollout = self.rollout.model_copy(update={"keep_target": True})
        return self.model_copy(update={"rollout": rollout})

    @model_validator(mode="after")
    def _numbers_agree(self) -> Self:
        require_leases(self.learner, self.rollout)
        require_workers(self.rollout)
        return self

    @model_validator(mode="after")
    def _rewards_are_given(self) -> Self:
        require_rewards(self.objective, self.scorers, self.rollout)
        require_targets(self.scoring, self.contexts)
        require_secret(self.objective, self.teacher, self.conditions, self.contexts)
        return self

    @model_validator(mode="after")
    def _contexts_suit_the_objective(self) -> Self:
        self.objective.check_student(self.models.student)
        describe = partial(self.tokenizer.describe, self.images.size)
        require_passes(self.contexts, self.models.student, describe)
        require_rows(self.contexts, self.models.student, describe)
        require_guesses(self.contexts, self.models.student, self.models.teacher)
        self.objective.check(self.contexts.policies())
        require_labels(self.contexts, self.objective)
        require_exact(self.contexts, self.objective)
        require_one_input(self.contexts, self.objective)
        return self

    @model_validator(mode="after")
    def _rows_of_one_pass_students_are_whole(self) -> Self:
        objective, sources = self.objective, self.contexts.sources
        if objective.needs_pairs:
            require_pairs(objective, sources)
            require_classes(pairs_of(objective), self.rollout, self.conditions)
        if objective.phases():
            require_newest(objective, sources, self.learner, self.rollout)
            why = f"objective.kind={objective.kind} learns from sequences"
            require_classes(why, self.rollout, self.conditions)
        require_readable(self.teacher, self.models.teacher, self.models.student)
        return self

    @model_validator(mode="after")
    def _one_pass_students_fit(self) -> Self:
        if isinstance(student := self.models.student, OnePassConfig):
            spec = self.tokenizer.describe(self.images.size)
            require_steps(student, spec, self.evaluate, self.sample)
        return self

    @model_validator(mode="after")
    def _networks_see_images(self) -> Self:
        for key, net in parts(self, LpipsConfig):
            net.require_side(key, self.images.size)
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
