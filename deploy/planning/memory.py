"""How much memory the roles' computations take, without doing them.

They run on the meta device, where tensors have shapes but no content, while a meter follows which
of them are alive. So caches, canvases, activations and chunks are those of the code itself,
whatever the backbone.

Shape letters: B sequences, L slots, C width, V codes, N tokens, n tokens of a chunk or slots of a
step.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from common.device import precision
from common.exchange.provenance import STUDENT, Policy
from common.exchange.signal import entropies
from common.exchange.trajectory import TrajectoryBatch
from common.models.backbone import Backbone
from common.randomness import Draws
from common.spec import SequenceSpec
from deploy.config import RunConfig
from learner.chunked import chunked_loss
from learner.diagnostics import observe
from learner.gathered_tokens import STRIDE
from learner.objective import TokenChunk
from learner.relaxation import ClusterMap, RelaxationConfig
from learner.resources import Resources
from rollout.context import SamplerName
from rollout.sampler import SamplingConfig, Stepper, draw, filtered_logprob
from teacher_server.teacher import guided_features

META = torch.device("meta")
PREFIX_DRAWS = 64
"""Prefixes that are drawn to find a short and a long one."""
GROUP = 32
"""Tokens of a group where an objective compares tokens with one another."""


def peak_bytes(run: Callable[[], object], autocast: torch.dtype = torch.float32) -> int:
    """Most bytes of meta tensors that `run` holds at a time, beside those that existed before."""
    with Kernels(autocast), Meter() as meter:
        run()
    return meter.peak


class Meter(TorchDispatchMode):
    """Counts the meta tensors that are made inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._watch((args, kwargs), counted=False)  # what came from outside, if it is new here
        made = func(*args, **(kwargs or {}))
        self._watch(made, counted=True)
        return made

    def _watch(self, values: Any, *, counted: bool) -> None:
        for value in tree_iter(values):
            if not isinstance(value, Tensor) or not value.is_meta:
                continue
            storage = value.untyped_storage()
            key = storage._cdata
            if key not in self._sizes:
                self._sizes[key] = storage.nbytes() if counted else 0
                self.alive += self._sizes[key]
                self.peak = max(self.peak, self.alive)
                weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.alive -= self._sizes.pop(key)


class Kernels(TorchFunctionMode):
    """Lets meta tensors be treated as real devices treat theirs: attention is fused, trained
    layers run under autocast, and a check of values, which are not there, passes."""

    def __init__(self, autocast: torch.dtype) -> None:
        super().__init__()
        self._autocast = autocast

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return FusedAttention.apply(*args[:3])
        if func is Tensor.__bool__ and args[0].is_meta:
            return True
        if func is F.linear and self._autocast != torch.float32 and args[1].requires_grad:
            args = tuple(None if value is None else value.to(self._autocast) for value in args)
        return func(*args, **(kwargs or {}))


class FusedAttention(torch.autograd.Function):
    """Keeps its inputs and its output, never the scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mixed = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, mixed)
        return mixed

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(saved) for saved in ctx.saved_tensors[:3])


def decoding_bytes(config: RunConfig, model: Backbone, sampler: SamplerName = "student") -> int:
    """Caches and logits while `sampler` completes a lease after its shortest and after its longest
    prefix: rows that advance together have more tokens in a step the more of them are left."""
    settings, contexts = config.rollout, config.contexts
    sampling = settings.sampling if sampler == "student" else contexts.teacher_sampling
    prefixes = sampled_prefixes(config, model.spec, sampler)
    if not prefixes or sampling is None:
        return 0
    batch = blank_batch(model, settings.batch_size, sampling)

    @torch.no_grad()
    def run(prefix: int) -> None:
        plan = model.drawing_plan(batch.plan, sampling.decoding, given=prefix)
        sizes, first = plan.step_sizes, plan.step_of(prefix)
        widest = max(range(first, len(sizes)), key=sizes.__getitem__)
        noise_BL = torch.zeros(batch.token_BL.shape, dtype=torch.float64, device=META)
        stepper = Stepper(model, batch.label_B, sampling.guidance, plan, batch.token_BL, first)
        for step in range(first, min(widest + 2, len(sizes))):
            logprob_BnV = filtered_logprob(stepper.logits(), sampling)
            stepper.commit(draw(logprob_BnV, noise_BL[:, plan.slots(step)]))

    ends = {max(prefixes), min(prefixes)} if sampling.decoding.zipar else {max(prefixes)}
    return max(peak_bytes(lambda prefix=prefix: run(prefix)) for prefix in ends)


def sampled_prefixes(config: RunConfig, spec: SequenceSpec, sampler: SamplerName) -> list[int]:
    """Lengths of prefixes that `sampler` continues; none where it never samples anything."""
    draws = Draws(config.seed, 1)
    found = [
        source.prefix(index, draws, spec=spec, step=index)
        for source in config.contexts.used
        if source.sampler == sampler
        for index in range(PREFIX_DRAWS)
    ]
    return [prefix for prefix in found if prefix < spec.length]


def scoring_images(config: RunConfig) -> int:
    """Most images in one forward pass of a teacher: requests are joined whole."""
    lease, batching = config.rollout.batch_size, config.teacher.batching
    if config.learner.ordered or batching.wait_ms == 0:
        return lease
    waiting = config.rollout.workers * max(1, config.rollout.in_flight)
    return lease * min(-(-batching.max_images // lease), waiting)


def scoring_bytes(config: RunConfig, teacher: Backbone, head: nn.Linear) -> int:
    """Activations, signal and entropies of one batch."""
    batch = blank_batch(teacher, scoring_images(config), config.rollout.sampling)

    @torch.no_grad()
    def run() -> None:
        hidden_BLC = guided_features(teacher, batch, config.teacher.guidance).float()
        signal = config.teacher.signal.encode(hidden_BLC, head)
        signal["entropy"] = entropies(hidden_BLC, head)

    return peak_bytes(run)


def training_bytes(config: RunConfig, student: Backbone, head: nn.Linear) -> int:
    """Gradients, activations and logits of a micro-batch."""
    settings, signal = config.learner, config.teacher.signal
    images = min(settings.micro_batch, settings.global_batch_size // settings.world_size)
    batch = blank_batch(student, images, config.rollout.sampling)
    objective = config.objective.build(_blank_resources(config, student.spec.vocab_size))
    shares = config.contexts.policies()
    policies: list[Policy] = [policy for policy, share in shares.items() if share]

    def micro_batch(policy: Policy) -> None:
        token_N = batch.token_BL.flatten()
        column = signal.encode(torch.zeros(len(token_N), head.in_features, device=META), head)

        def loss(logit_nV: Tensor, tokens: slice) -> Tensor:
            teacher_nV = None
            if config.objective.needs_teacher:
                part = {name: value[tokens] for name, value in column.items()}
                teacher_nV = signal.logprob(part, head)
            student_nV = logit_nV.float().log_softmax(-1)
            chunk = TokenChunk(
                policy,
                token_N[tokens],
                student_nV,
                teacher_nV,
                {name: student_nV.new_zeros(len(student_nV)) for name in config.objective.columns},
                _groups(len(student_nV)),
            )
            observe(objective, chunk, torch.arange(0, len(student_nV), STRIDE, device=META))
            return objective.token_loss(chunk).sum()

        hidden_NC = student.features(batch.label_B, batch.token_BL, batch.plan).flatten(0, 1)
        chunked_loss(hidden_NC.clone(), student.head, loss, settings.chunk_tokens).backward()

    def run() -> None:
        for policy in policies * 2:  # the second time, beside the gradients of the first
            micro_batch(policy)

    return peak_bytes(run, precision(settings.dtype))


def _groups(count: int) -> tuple[int, ...]:
    """Sizes that add up to `count`; what is compared within one is small beside the logits."""
    return tuple(min(GROUP, count - first) for first in range(0, count, GROUP))


def _blank_resources(config: RunConfig, vocab_size: int) -> Resources:
    """What the objective declares, without content."""

    def clusters(relaxation: RelaxationConfig) -> ClusterMap:
        cluster_V = torch.zeros(vocab_size, dtype=torch.long, device=META)
        return ClusterMap(cluster_V, vocab_size // relaxation.factor)

    return Resources(META, clusters=clusters).only(config.objective.resources())


def blank_batch(model: Backbone, images: int, sampling: SamplingConfig) -> TrajectoryBatch:
    """Sequences without content, in the order in which they are decoded."""
    plan = model.plan(range(images), sampling.decoding)
    index_B = torch.zeros(images, dtype=torch.long, device=META)
    token_BL = torch.zeros(plan.order_BL.shape, dtype=torch.long, device=META)
    return TrajectoryBatch(
        spec=model.spec,
        id_B=index_B,
        version_B=index_B,
        label_B=index_B,
        context=("blank",) * images,
        policy=(STUDENT,) * images,
        law=("exact",) * images,
        prefix_B=index_B,
        plan=plan,
        token_BL=token_BL,
        logprob_BL=token_BL.float(),
    )
