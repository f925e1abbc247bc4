"""What a pair of noise and tokens takes on the wire, and whose noise it is.

The acceptance tests R4 and R5 of docs/one_step.md.
"""

import io

import pyarrow as pa
import pytest
import torch

from common.exchange.record_size import bytes_per_image
from common.exchange.trajectory import TrajectoryBatch, from_arrow, to_arrow
from common.models.generator import gaussian
from common.models.plan import raster_plan
from common.spec import SequenceSpec

ROWS = 256
PUBLISHED = {
    "llamagen_l": (SequenceSpec(16384, 256, (16, 16), 1000), 8, (537, 8_730)),
    "var_d16": (
        SequenceSpec(4096, 680, (16, 16), 1000, (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)),
        32,
        (1_385, 88_426),
    ),
}
"""Spec, code width, and bytes of a row: what names it and its tokens; with a vector of float32 for
each token as well. Beside vectors and two bytes for a token these are a few ids."""


def pairs(spec, width=None):
    drawn = torch.Generator().manual_seed(0)
    seed_B = torch.randint(2**62, (ROWS,), generator=drawn)
    return TrajectoryBatch(
        spec=spec,
        id_B=torch.arange(ROWS) + 10**9,
        version_B=torch.zeros(ROWS, dtype=torch.long),
        label_B=torch.randint(1000, (ROWS,), generator=drawn),
        context=("teacher",) * ROWS,
        policy=("teacher",) * ROWS,
        law=("exact",) * ROWS,
        prefix_B=torch.zeros(ROWS, dtype=torch.long),
        plan=raster_plan(ROWS, spec.length),
        token_BL=torch.randint(spec.vocab_size, (ROWS, spec.length), generator=drawn),
        logprob_BL=torch.zeros(ROWS, spec.length),
        seed_B=seed_B,
        vector_BLD=width and torch.randn(ROWS, spec.length, width, generator=drawn),
    )


def bytes_of_a_row(record):
    stream = io.BytesIO()
    with pa.ipc.new_stream(stream, record.schema) as writer:
        for _ in range(16):  # the schema is sent once
            writer.write_batch(record)
    return stream.tell() / (16 * record.num_rows)


@pytest.mark.parametrize("model", PUBLISHED)
def test_a_pair_takes_the_bytes_of_its_seed_and_tokens(model):
    """Never of its noise; and a generator's row those of its vectors, once."""
    spec, width, (plain, beside) = PUBLISHED[model]
    names = ["id", "version", "label", "seed", "token"]
    for record, wanted in (
        (to_arrow(pairs(spec)).select(names), plain),
        (to_arrow(pairs(spec, width)).select([*names, "vector"]), beside),
    ):
        assert bytes_of_a_row(record) == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("model", PUBLISHED)
def test_whole_records_are_as_large_as_is_planned_and_come_back_to_the_bit(model):
    spec, width, _ = PUBLISHED[model]
    for given in (0, width):
        batch = pairs(spec, given or None)
        record = to_arrow(batch)
        planned = bytes_per_image(spec, 0, noise=False, seeds=True, code_width=given)
        assert bytes_of_a_row(record) == pytest.approx(planned, rel=0.02)
        again = from_arrow(record)
        assert torch.equal(again.seed_B, batch.seed_B)
        assert torch.equal(again.token_BL, batch.token_BL)
        assert (again.vector_BLD is None) == (not given)
        assert not given or torch.equal(again.vector_BLD, batch.vector_BLD)
        assert to_arrow(again).equals(record)


def test_the_noise_of_a_row_is_gaussian_and_its_own():
    """Every coordinate of it; and it was not rounded, which moments alone do not show."""
    rows = 4000
    noise_BLD = gaussian(range(rows), 6, 4)
    count = noise_BLD.numel()
    assert float(noise_BLD.mean(0).abs().max()) < 5 / rows**0.5
    assert float((noise_BLD.var(0) - 1).abs().max()) < 5 * (2 / rows) ** 0.5
    assert abs(float(noise_BLD.mean())) < 5 / count**0.5
    assert abs(float(noise_BLD.var()) - 1) < 5 * (2 / count) ** 0.5
    assert abs(float(noise_BLD.pow(4).mean()) - 3) < 5 * (96 / count) ** 0.5
    for narrow in (torch.float16, torch.bfloat16):
        assert float((noise_BLD.to(narrow) == noise_BLD).double().mean()) < 0.01
    assert torch.equal(gaussian([17, 3], 6, 4), noise_BLD[[17, 3]])
    assert not torch.equal(noise_BLD[0], noise_BLD[1])
