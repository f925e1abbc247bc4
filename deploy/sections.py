"""Sections of a run's config that belong to no role."""

from typing import Annotated, Any, Literal

from pydantic import Field

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
    Tokens,
)
from common.config.schema import Config, UserPath
from learner.pretrain import PretrainConfig
from learner.tokenizer_training import TokenizerTrainingConfig
from rollout.sampler import SamplingConfig


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
    keep_gb: Gigabytes | None = None
    """Keep the newest records, up to so many bytes, as rollouts/ in the run folder: for
    `varkd replay`. By default none."""


class SampleConfig(Config):
    per_class: CountOrNone = 8
    """Images per class."""
    batch_size: Batch | None = None
    """Images drawn together; by default evaluate.batch_size."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where they are drawn."""
    sampling: SamplingConfig | None = None
    """How they are drawn; by default as `varkd evaluate` does, by evaluate.sampling."""
    steps: Count | None = None
    """Passes of a one-pass student; by default the first of evaluate.steps."""
    inserted: tuple[Count, Count] | None = None
    """Instead of `steps`: two passes with the teacher between, as in evaluate.inserted."""


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
    draft: UserPath | None = None
    """A smaller LlamaGen of ours on the same tokens, such as a student of an earlier run, that
    guesses for the teacher; the sequences have the teacher's law all the same."""
    draft_tokens: Tokens = 4
    """How far it guesses ahead."""

    @property
    def resources(self) -> dict[str, Any]:
        """What takes the place of [rollout]'s."""
        return self.model_dump(exclude_none=True, exclude={"draft", "draft_tokens"})


LabelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._/-]{0,250}[A-Za-z0-9])?$")]
"""As Kubernetes spells them."""


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
    role_label: LabelName | None = None
    """A label of Ray's nodes, such as varkd-role: an actor reserves room only where its value is
    the actor's role, which is teacher (scorers are with it), rollout or learner."""
    object_store_mb: Megabytes = 512.0
    """Shared memory of a Ray cluster that the command starts itself."""

    @property
    def is_declared(self) -> bool:
        """Whether this describes another machine than the one that the command runs on."""
        return self.nodes > 1 or bool(self.cpus or self.gpu_memory_gb) or self.gpus is not None
