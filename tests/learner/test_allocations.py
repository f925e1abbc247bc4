"""What is held at a time: never the logits of all tokens."""

import pytest
import torch
from building.objectives import built
from torch.utils._python_dispatch import TorchDispatchMode

from common.exchange.signals import guided_hidden
from common.files.tensors import state_digest
from common.spec import SequenceSpec
from learner.categorical import Categorical
from learner.chunked import chunked_loss
from learner.config import LearnerConfig
from learner.gate import GateConfig
from learner.learner import Learner
from learner.objective import TokenChunk
from learner.objectives import varkd
from learner.relaxation import ClusterMap
from learner.teacher_targets import TeacherTargets
from teacher_server.teacher import TeacherConfig, signal_columns


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation produced."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("chunk", [8, 16])
def test_no_tensor_of_the_loss_outgrows_its_chunk(chunk):
    tokens, width, vocabulary = 512, 8, 96
    head = torch.nn.Linear(width, vocabulary, bias=False)
    teacher_head = torch.nn.Linear(width, vocabulary, bias=False)
    hidden = torch.randn(tokens, width, requires_grad=True)
    sent = torch.randn(tokens, width)
    wide = ClusterMap(torch.arange(vocabulary) // 4, vocabulary // 4)
    objective = built(varkd.Config(), wide)

    def loss(logit_nV, part):
        with torch.no_grad():
            teacher = guided_hidden.Config().logit({"hidden": sent[part]}, teacher_head)
        token_n = torch.zeros(len(logit_nV), dtype=torch.long)
        chunk = TokenChunk("student", token_n, Categorical(logit_nV), Categorical(teacher))
        return objective.token_loss(chunk).sum()

    with LargestTensor() as largest:
        chunked_loss(hidden, head, loss, chunk).backward()
    assert largest.elements <= max(chunk * vocabulary, tokens * width, width * vocabulary)
    assert largest.elements < tokens * vocabulary / 8


LONG = SequenceSpec(vocab_size=1024, length=128, grid=(8, 16), num_classes=3)
"""So wide and long that B * L * V is more than anything else of a tiny model."""


def test_neither_scoring_nor_a_step_of_varkd_holds_the_logits_of_all_tokens(tiny, sampled):
    student, teacher = (tiny("llamagen", seed, LONG) for seed in (0, 1))
    batch = sampled(student)
    clusters = ClusterMap(torch.arange(LONG.vocab_size) // 4, LONG.vocab_size // 4)
    objective = varkd.Config(gate=GateConfig(mode="speculative", tau=1e-9, entropy_space="C"))
    learner = Learner(
        LearnerConfig(chunk_tokens=64),
        built(objective, clusters),
        student,
        seed=0,
        contexts=("data", "student"),
        teacher=TeacherTargets(guided_hidden.Config(), teacher.head, state_digest(teacher.head)),
    )
    all_logits = batch.token_BL.numel() * LONG.vocab_size
    with LargestTensor() as scoring:
        signal = signal_columns(TeacherConfig(), teacher, teacher.head, batch)
    batch = batch.scored(signal, {"head": state_digest(teacher.head)})
    with LargestTensor() as learning:
        learner.step(batch)
    assert learning.elements <= all_logits / 4
    assert scoring.elements <= all_logits / 2, "a chunk of 256 of 640 tokens"
