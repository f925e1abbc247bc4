"""How much memory it takes to measure students of the middle of a run, without doing it
(deploy/stages/milestone_quality.py).

Shape letters: B sequences, L slots, V codes.
"""

import copy
from functools import partial

import torch

from common.exchange.provenance import STUDENT
from common.models.backbone import Backbone
from common.models.cpu.native_steps import has_steps
from common.tokenization.tokenizer import Tokenizer
from deploy.config import RunConfig
from deploy.planning.blank_tensors import META, is_on_cpu, peak_bytes
from deploy.planning.memory import blank_batch
from deploy.planning.sampling_memory import decode_blank, generating_bytes
from deploy.planning.skeletons import skeleton, state_bytes, tokenizer_like
from deploy.stages.likelihood import (
    compared,
    exact_decoding,
    guided_logprobs,
    rows_together,
)
from deploy.stages.milestone_quality import TRAINED
from learner.objective import Student
from rollout.sampler import SamplingConfig


def milestone_bytes(config: RunConfig, student: Student) -> tuple[int, int]:
    """(where the learner computes, on its host) while rank 0 measures a milestone: the student once
    more and the tokenizer, and what takes more of two things that come one after the other, the
    images of its FID and its likelihoods beside the teacher. The networks of features and of
    rewards are not counted."""
    kept_by = config.learner.keep_best_by
    if kept_by == TRAINED:
        return 0, 0
    model = copy.deepcopy(student).eval().requires_grad_(False)
    tokenizer = tokenizer_like(config, META)
    drawing = images = judging = logprobs = 0
    if kept_by == "fid":
        drawing, images = _images_bytes(config, model, tokenizer)
    if isinstance(model, Backbone) and config.evaluate.likelihood_samples:
        judging, logprobs = _likelihood_bytes(config, model)
    held = state_bytes(model) + state_bytes(tokenizer)
    return held + max(drawing, judging), images + logprobs


def _is_on_cpu(config: RunConfig) -> bool:
    return is_on_cpu(config.evaluate.device, config.learner.gpus)


def _images_bytes(config: RunConfig, model: Student, tokenizer: Tokenizer) -> tuple[int, int]:
    """What a batch of samples takes to be drawn or to become pixels; all samples and real images,
    which stay."""
    settings, images = config.evaluate, config.images
    batch = min(settings.batch_size, settings.samples)
    if isinstance(model, Backbone):
        decoding = partial(decode_blank, model, batch, settings.sampling)
        drawing = peak_bytes(decoding, on_cpu=_is_on_cpu(config))
    else:
        drawing = generating_bytes(config, model, batch)
    token_BL = torch.zeros(batch, model.spec.length, dtype=torch.long)
    with torch.no_grad():
        showing = peak_bytes(lambda: tokenizer.decode(token_BL))
    pixels = images.channels * (settings.size or images.size) ** 2
    compared_images = settings.samples + (settings.reference_images or settings.samples)
    return max(drawing, showing), compared_images * pixels


def _likelihood_bytes(config: RunConfig, student: Backbone) -> tuple[int, int]:
    """The teacher, with what either model takes to draw sequences or to say how likely they are;
    and the probabilities of both for as many sequences as are compared at a time."""
    settings, target, decoding = config.evaluate, config.teacher.guidance, exact_decoding(config)
    teacher = skeleton(config.models.teacher, student.spec).eval().requires_grad_(False)
    batch = min(settings.batch_size, settings.likelihood_samples)
    rows = min(rows_together(student.spec), settings.likelihood_samples)
    tables = config.conditions.tables(student.spec.num_classes)
    # Packed weights stay after drawing.
    packing = [model for model in (student, teacher) if _is_on_cpu(config) and has_steps(model)]
    kept = sum(map(state_bytes, packing))
    taken = 0
    for model, guidance in ((student, None), (teacher, target)):
        sampling = SamplingConfig(guidance=guidance, decoding=decoding)
        decode = partial(decode_blank, model, batch, sampling)
        drawing = peak_bytes(decode, on_cpu=_is_on_cpu(config))
        given = blank_batch(model, (STUDENT,) * rows, sampling)
        saying = peak_bytes(partial(guided_logprobs, model, given, guidance, tables.for_student()))
        taken = max(taken, drawing, saying)
    of_BLV = torch.empty(rows, student.spec.length, student.spec.vocab_size, device=META)
    return state_bytes(teacher) + kept + taken, 2 * of_BLV.nbytes + peak_bytes(
        lambda: compared(of_BLV, of_BLV)
    )
