"""How large a record is before there is one.

Shape letters: L slots, D code width.
"""

from common.exchange.trajectory import id_type
from common.spec import SequenceSpec


def bytes_per_image(
    spec: SequenceSpec,
    signal_bytes: int,
    *,
    noise: bool,
    groups: bool = False,
    seeds: bool = False,
    targets: bool = False,
    inputs: bool = False,
    code_width: int = 0,
) -> int:
    """Wire size of one scored row: fixed columns, order and token, logprob.

    `signal_bytes` are those of what scorers say of it, `targets` the sequences that rows are
    compared with, `inputs` what is read in their places, `code_width` D of vectors that go with the
    codes.
    """
    numbers = 8 * (4 + 2 * groups + seeds)
    words = 3 * (4 + 7)  # an offset each, and about as many letters
    codes = (1 + targets + inputs) * id_type(spec.vocab_size).itemsize
    slot = id_type(spec.length).itemsize + codes
    slot += 4 + 8 * noise
    slot += 4 * code_width
    return numbers + words + spec.length * slot + signal_bytes
