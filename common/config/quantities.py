"""Numbers that a config may hold, each between two finite bounds.

The bounds are far outside of what anybody runs; they are there so that a slip of the keyboard is
a sentence and not a day of swapping. What is plausible on its own and still too much together is
refused by `--dry-run` and before anything is allocated (common/memory.py).
"""

from typing import Annotated, Any

from pydantic import Field

Count = Annotated[int, Field(ge=1, le=10**9)]
"""Images, sequences, patches."""
CountOrNone = Annotated[int, Field(ge=0, le=10**9)]
"""The same, where 0 means none, or all."""
Steps = Annotated[int, Field(ge=1, le=10**8)]
"""Steps of training."""
StepsOrNever = Annotated[int, Field(ge=0, le=10**8)]
"""Steps between two events; 0 means that there are none."""
Batch = Annotated[int, Field(ge=1, le=2**20)]
"""Images that are in memory together."""
BatchOrChosen = Annotated[int, Field(ge=0, le=2**20)]
"""The same, where 0 leaves it to the run."""
Tokens = Annotated[int, Field(ge=1, le=2**24)]
"""Tokens of a sequence or of a chunk."""
TokensOrNone = Annotated[int, Field(ge=0, le=2**24)]
TokensOrChosen = Annotated[int, Field(ge=0, le=2**24)]
"""The same, where 0 leaves it to the run."""
Vocabulary = Annotated[int, Field(ge=1, le=2**20)]
"""Codes."""
CodesOrAll = Annotated[int, Field(ge=0, le=2**20)]
"""The most likely codes; 0 means all."""
Classes = Annotated[int, Field(ge=1, le=10**6)]
ClassesOrNone = Annotated[int, Field(ge=0, le=10**6)]
Side = Annotated[int, Field(ge=1, le=4096)]
"""Pixels or codes along one side of an image."""
Width = Annotated[int, Field(ge=1, le=2**16)]
"""Channels."""
WidthOrNone = Annotated[int, Field(ge=0, le=2**16)]
Depth = Annotated[int, Field(ge=1, le=1024)]
"""Layers, blocks, heads, rounds."""
Processes = Annotated[int, Field(ge=1, le=4096)]
"""Actors, ranks, nodes."""
Spare = Annotated[int, Field(ge=0, le=1000)]
"""Tries that may fail, records that may wait."""
Cpus = Annotated[float, Field(ge=0, le=4096)]
"""Logical CPUs, or a part of one."""
SomeCpus = Annotated[float, Field(gt=0, le=4096)]
Gpus = Annotated[float, Field(ge=0, le=64)]
"""GPUs, or a part of one."""
Probability = Annotated[float, Field(ge=0, le=1)]
SomeProbability = Annotated[float, Field(gt=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
"""What must leave something: dropout, decay."""
LearningRate = Annotated[float, Field(gt=0, le=100)]
Factor = Annotated[float, Field(gt=0, le=10**6)]
"""Something is multiplied or divided by it."""
Weight = Annotated[float, Field(ge=0, le=10**6)]
"""Relative importance; 0 leaves something out."""
RewardOrNone = Annotated[float, Field(ge=-(10**6), le=10**6)] | None
"""What a scorer may say of a row; the higher the better."""
Nats = Annotated[float, Field(ge=0, le=100)]
"""Entropies and their thresholds."""
Temperature = Annotated[float, Field(ge=1e-5, le=10**4)]
"""LlamaGen's sampler has the same lower bound."""
Seconds = Annotated[float, Field(gt=0, le=10**8)]
MinutesOrNever = Annotated[float, Field(ge=0, le=10**6)]
"""Minutes between two events; 0 means that there are none."""
Milliseconds = Annotated[float, Field(ge=0, le=10**6)]
Megabytes = Annotated[float, Field(gt=0, le=10**9)]
Gigabytes = Annotated[float, Field(gt=0, le=10**6)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def several(value: Any) -> Any:
    """One number in the place of a list of them, before validation."""
    return (value,) if isinstance(value, int) and not isinstance(value, bool) else value
