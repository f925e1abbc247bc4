"""The [learner] section."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import SerializeAsAny, model_validator

from common.config.plugins import from_package
from common.config.quantities import (
    Batch,
    Count,
    CountOrNone,
    Cpus,
    Gpus,
    MinutesOrNever,
    Processes,
    Seconds,
    Spare,
    Steps,
    StepsOrNever,
    TokensOrChosen,
)
from common.config.schema import Config, UserPath
from learner.objective import ObjectiveConfig
from learner.optimizer import OptimizerConfig

CHUNK_BYTES = {"cuda": 2**29, "cpu": 2**24}
"""Of a chunk's logits in float32."""
MOST_CHUNK_TOKENS = 2**14
"""Of small vocabularies, whose logits are not what a chunk takes."""

AnyObjective = Annotated[SerializeAsAny[ObjectiveConfig], from_package("learner.objectives")]


class LearnerConfig(Config):
    renamed: ClassVar[Mapping[str, str]] = {
        "max_lag": "max_staleness",
        "images_per_step": "global_batch_size",
        "ranks": "world_size",
        "snapshot_every": "checkpoint_every",
        "keep_every": "export_every",
    }

    weights: UserPath | None = None
    """The student to start from, ours or an official checkpoint; by default
    student_before.safetensors in the run folder."""
    weights_ema: bool = False
    """Read the averaged weights of an official trainer's file."""
    steps: Steps = 200
    """Optimiser steps of distillation."""
    global_batch_size: Batch = 64
    """Global batch: sequences per optimiser step, over all ranks."""
    micro_batch: Batch = 64
    """Sequences per forward and backward pass; gradients accumulate to a whole step."""
    chunk_tokens: TokensOrChosen = 0
    """Tokens whose logits exist at a time; bounds the memory of the loss. 0 chooses by the
    vocabulary: 16 MB of logits on a CPU, which its cache holds, and 512 MB on a GPU."""
    publish_every: Steps = 1
    """Steps between versions offered to the rollout workers."""
    max_staleness: StepsOrNever = 2
    """Oldest weights a trained sample may come from, in learner steps; 0 is on-policy."""
    ordered: bool = False
    """Pin weight versions and batch geometry to the image index: reproducible, somewhat slower."""
    world_size: Processes = 1
    """Data-parallel learner processes."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """What several of them hold: `ddp` all of the student each; `fsdp` a part of its weights,
    gradients, moments and average each (torch's FSDP2), for students that one GPU does not hold.
    The same losses; a single one holds all in any case."""
    activation_checkpointing: bool = False
    """Keep what goes into the student's blocks instead of all that they compute, and compute it
    once more in the backward pass: less memory, a third more work, the same numbers. Not beside
    compile."""
    profile_every: StepsOrNever = 50
    """Steps per window of the curves by slot in profiles.jsonl (confidence, survival, entropy,
    divergence); 0 keeps none."""
    checkpoint_every: StepsOrNever = 0
    """Steps between resumable snapshots; 0 leaves it to checkpoint_minutes."""
    checkpoint_minutes: MinutesOrNever = 5.0
    """A snapshot is stored when the last one is as old as this, and after the last step: what a run
    loses that is killed. 0 leaves it to checkpoint_every."""
    keep_last: Count = 2
    """Newest snapshots that stay."""
    export_every: StepsOrNever = 0
    """Steps between students that stay, as milestones/<step>.safetensors and its EMA, for curves
    of quality over training; 0 keeps only the last step's, as student.safetensors."""
    keep_best: CountOrNone = 0
    """Only so many of those students stay: of the lowest mean divergence from the teacher since the
    one before, as training saw it (divergence/student, else /data, else the loss). 0 keeps all."""
    keep_best_by: Literal["divergence", "fid", "reverse_kl"] = "divergence"
    """Which are the best. For fid the learner draws evaluate.samples images of each of those
    students and of its average and compares them as `varkd evaluate` does, on evaluate.device, and
    measures likelihoods by evaluate.likelihood_samples; for reverse_kl, KL(student || teacher), the
    likelihoods alone. The run waits for that; metrics have it as milestone/*."""
    max_minutes: MinutesOrNever = 0.0
    """Wall-clock limit of the command: after so long the run ends in order as by SIGTERM, with exit
    code 0, to go on by --resume. 0 is no limit."""
    stop_seconds: Seconds = 300.0
    """A run on Ray that was told to stop has this long for its step and snapshot; then it is ended,
    with what was stored before."""
    max_failures: Spare = 1
    """How often a dead learner is restarted from its newest snapshot."""
    stall_seconds: Seconds = 300.0
    """The run ends, naming the stage, when no batch arrives for this long; a process that answers
    nothing for half of it is ended as if it had died, so that others can take its place."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW, schedule, clipping, EMA."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the loss is computed."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Autocast type of the forward pass; weights and loss stay float32, whatever type the
    student's file has. With bfloat16 a GPU multiplies the teacher's head from factors of ten bits
    (TF32), which float16 on the wire has no more than."""
    compile: bool = False
    """Compile the student's layers by torch.compile: some seconds at the start, faster steps on a
    GPU. Dropout then draws other numbers."""
    cpus: Cpus = 1
    """Logical CPUs reserved per rank on the cluster, and threads that it computes with."""
    gpus: Gpus = 0
    """GPUs reserved per rank."""

    def chunked(self, vocab_size: int, device: str) -> Self:
        """With the size of a chunk chosen for that kind of device, if it is left to the run."""
        if self.chunk_tokens:
            return self
        fitting = CHUNK_BYTES.get(device, CHUNK_BYTES["cpu"]) // (4 * vocab_size)
        return self.model_copy(update={"chunk_tokens": max(1, min(fitting, MOST_CHUNK_TOKENS))})

    @model_validator(mode="after")
    def _students_are_there_to_be_judged(self) -> Self:
        if self.keep_best_by != "divergence" and not (self.export_every and self.keep_best):
            raise ValueError(
                f"learner.keep_best_by is {self.keep_best_by}, but learner.export_every is "
                f"{self.export_every} and learner.keep_best is {self.keep_best}, so that no "
                "student of the middle of the run is compared; set both, or leave keep_best_by at "
                "divergence"
            )
        return self

    @model_validator(mode="after")
    def _blocks_are_as_they_are(self) -> Self:
        if self.compile and self.activation_checkpointing:
            raise ValueError(
                "learner.compile and learner.activation_checkpointing are both true, but blocks "
                "that are computed twice are not compiled; set one of them to false"
            )
        if self.compile and self.parallel == "fsdp":
            raise ValueError(
                "learner.compile is true and learner.parallel is fsdp, but blocks that lie over "
                "several ranks are not compiled; set the one to false or the other to ddp"
            )
        return self
