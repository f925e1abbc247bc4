"""[rollout]: how many workers sample, where, and how."""

from typing import Literal

from pydantic import field_validator

from common.config.quantities import Batch, BatchOrChosen, Cpus, Fraction, Gpus, Processes, Spare
from common.config.schema import Config, UserPath
from rollout.sampler import SamplingConfig

LARGEST_LEASE = {True: 256, False: 64}
"""Images that a lease may have on a GPU, on CPUs: where more of them hardly raise the rate
(docs/running.md)."""


class GroupConfig(Config):
    size: Batch = 1
    """Samples of every condition (one data row, label and prefix; noise of their own), for rewards
    that compare them; must divide rollout.batch_size."""


class RolloutConfig(Config):
    workers: Processes = 2
    """Rollout worker actors at the start; scaled independently of the learner."""
    min_workers: Processes = 1
    """The run ends with the cause when fewer workers are left; none retires below that."""
    max_workers: Processes | None = None
    """The run has up to so many workers, by itself: one more while the learner waits for busy
    workers, one less while they wait for the learner. By default their number changes only when
    somebody asks for it (`varkd scale`), up to twice rollout.workers."""
    max_restarts: Spare = 3
    """Workers that may be replaced when they die; the others take over beyond that. One that had
    worked for ten minutes does not count."""
    batch_size: BatchOrChosen = 32
    """Images per lease, decoded together; must divide learner.global_batch_size. 0 chooses the
    largest, up to 256 on a GPU and 64 on CPUs, that leaves every worker a lease of each step."""
    group: GroupConfig = GroupConfig()
    """Several samples of one condition."""
    in_flight: Spare = 1
    """Sampled leases that may wait for the teacher while the next one is decoded."""
    sampling: SamplingConfig = SamplingConfig()
    """How the student draws tokens; the loss assumes the plain distribution."""
    class_dropout: Fraction = 0.1
    """Probability that a label becomes the null class, for rollout, student and teacher alike."""
    replay: UserPath | None = None
    """Rollouts that another run kept (buffer.keep_gb), to be trained on without sampling or
    scoring; `varkd replay` sets it."""
    keep_noise: bool = False
    """Store the uniforms in the record (for replay and for one-step distillation)."""
    keep_target: bool = False
    """Store the data sequence that each row began as; what compares rows with it sets this."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the student samples."""
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """Precision of sampling and of the published weights. bfloat16 draws from the distribution of
    rounded weights, whose log-probabilities the records have; auto chooses it where this machine
    accelerates it, and says so."""
    weights_folder: UserPath | None = None
    """Where versions of the student travel as files: a folder that the driver, the learner and all
    workers see, with room for a few versions (`--dry-run` says how much). By default they travel
    through Ray's object store, or stay in memory in one process. Several runs may share it."""
    cpus: Cpus = 1
    """Logical CPUs reserved per worker on the cluster, and threads that it computes with (one for
    less than 2). Another number of threads rounds sums otherwise, in the last bits."""
    gpus: Gpus = 0
    """GPUs (or a fraction) reserved per worker."""

    @field_validator("sampling")
    @classmethod
    def _students_draw(cls, value: SamplingConfig) -> SamplingConfig:
        if value.flow is not None:
            raise ValueError(
                f"flow is set (kind {value.flow.kind}), but a student is trained on tokens that it "
                "draws; set it in contexts.sources.teacher.sampling, for pairs of noise and tokens"
            )
        return value

    def sized(self, global_batch_size: int, world_size: int) -> "RolloutConfig":
        """With a lease's size chosen, if that is left to the run: a number that divides what each
        of `world_size` ranks takes and is made of whole groups, if there is one."""
        if self.batch_size:
            return self
        of_rank, group = global_batch_size // world_size, self.group.size
        sizes = [size for size in range(group, of_rank + 1, group) if of_rank % size == 0]
        largest = min(LARGEST_LEASE[self.is_on_gpu], global_batch_size // self.workers)
        fitting = [size for size in sizes if size <= largest]
        size = max(fitting, default=min(sizes, default=group))
        return self.model_copy(update={"batch_size": size})

    @property
    def is_on_gpu(self) -> bool:
        """As far as the config says; where it leaves that to the machine, it does not."""
        return self.device == "cuda" or self.gpus > 0

    @property
    def most_workers(self) -> int:
        """How far a run may grow while it goes on: its services have threads for so many."""
        return self.max_workers or 2 * self.workers

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers changes by itself."""
        return self.max_workers is not None and self.max_workers > self.min_workers
