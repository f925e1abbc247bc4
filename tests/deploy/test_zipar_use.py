"""ZipAR around the decoder: the steps it takes, who refuses it, what a dry run counts."""

from pathlib import Path

import pytest
import torch

from common.errors import InputError
from common.models.backbones import llamagen
from common.models.plan import ZipARConfig, zipar_plan
from common.spec import SequenceSpec
from deploy.planning.resources import skeleton
from deploy.planning.sampling_memory import decoding_bytes
from deploy.run_folder.opening import open_run
from rollout.evaluation.metrics import sample_batches
from rollout.sampler import SamplingConfig

SPEC = SequenceSpec(vocab_size=24, length=30, grid=(5, 6), num_classes=3)


def sampling_of(window):
    zipar = None if window is None else ZipARConfig(window=window)
    return SamplingConfig(decoding=llamagen.Decoding(zipar=zipar))


@pytest.mark.parametrize(
    ("side", "serial", "steps"),
    [(24, False, 116), (24, True, 136), (16, False, 76), (16, True, 88)],
)
def test_whole_images_take_the_published_number_of_steps(side, serial, steps):
    plan = zipar_plan(2, (side, side), ZipARConfig(window=4, serial_first_row=serial))
    assert len(plan.step_sizes) == steps
    assert max(plan.step_sizes) == side // 4


def test_samples_for_evaluation_follow_the_same_key(tiny):
    model = tiny("llamagen", spec=SPEC)
    label_N = torch.tensor([0, 1, 2])
    found = [
        torch.cat(list(sample_batches(model, label_N, sampling=sampling, batch_size=2, seed=0)))
        for sampling in map(sampling_of, (None, 6, 2))
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_dry_run_counts_the_widest_step():
    """Logits dominate here: those of four tokens a sequence instead of one's, of which there are
    two at a time where a step in C takes over from the layers that read the prefix."""
    spec = SequenceSpec(2**16, 64, (8, 8), 10)
    student = skeleton(llamagen.Config.tiny(), spec).eval()
    prefix = ["contexts.sources.student.min_prefix=0", "contexts.sources.student.max_prefix=0.75"]
    zipar = "rollout.sampling.decoding.zipar.window=2"
    raster, rows = (
        decoding_bytes(open_run(Path("smoke"), [*prefix, *more])[0], student)
        for more in ((), (zipar,))
    )
    assert 1.6 < rows / raster < 4


def test_other_families_refuse_zipar_and_sequences_are_not_scored_by_it(tiny):
    decoding = llamagen.Decoding(zipar=ZipARConfig())
    for kind in ("var", "arpg"):
        with pytest.raises(InputError, match=rf"decoding.zipar is set \(window 4\), but {kind} "):
            tiny(kind).plan([0], decoding)
    plan = zipar_plan(1, SPEC.grid, ZipARConfig())
    with pytest.raises(ValueError, match="scored by their raster plan"):
        tiny("llamagen", spec=SPEC)(torch.tensor([0]), torch.zeros(1, 30).long(), plan)
