"""Planning, training, judging and reading tokens leave alone what takes longer to import than they
do; it is there for whoever asks afterwards."""

import subprocess
import sys
from pathlib import Path

import torch

from common.data.tokens import TokenDataset, save_tokens
from common.spec import SequenceSpec

ROOT = Path(__file__).parents[2]
QUICK = """
import importlib.util
import sys
from pathlib import Path
import torch
from common.data.tokens import load_tokens
from deploy.planning.blank_tensors import peak_bytes
from learner.optimizer import OptimizerConfig, build_adamw
from rollout.evaluation.torchvision_compat import ensure_torchvision

assert load_tokens(Path(sys.argv[1])).token_NAL.tolist() == [[[1, 0]], [[1, 1]], [[0, 1]]]
assert "pandas" not in sys.modules

table = torch.empty(5, 3, device="meta", requires_grad=True)
index = torch.empty(4, 2, dtype=torch.long, device="meta")

def run():
    optimizer = torch.optim.AdamW([table])
    rows = torch.nn.functional.embedding(index, table)
    torch.cat([rows, rows]).sum().backward()
    optimizer.step()

assert peak_bytes(run) > 0
assert "torch._dynamo" not in sys.modules

model = torch.nn.Linear(2, 1)
optimizer = build_adamw(OptimizerConfig(), dict(model.named_parameters()))
optimizer.zero_grad()
model(torch.ones(1, 2)).sum().backward()
before = model.weight.clone()
optimizer.step()
assert not model.weight.equal(before)
optimizer.load_state_dict(optimizer.state_dict())
assert "torch._dynamo" not in sys.modules

ensure_torchvision()
from torchvision.ops import box_area  # for its package, which asks the compiler
assert "torch._dynamo" not in sys.modules

found = importlib.util.find_spec("torch._dynamo")
assert Path(found.origin).parent == Path(torch.__file__).parent / "_dynamo"
assert sys.modules["torchvision.ops.roi_align"].is_compile_supported("meta") is False
assert torch._dynamo.utils.is_compile_supported("meta") is False  # of the real one
"""


def test_what_takes_long_to_import_is_left_alone(tmp_path):
    spec = SequenceSpec(vocab_size=2, length=2, grid=(1, 2), num_classes=1)
    token_NAL = torch.tensor([[[1, 0]], [[1, 1]], [[0, 1]]])
    dataset = TokenDataset(token_NAL, torch.zeros(3, dtype=torch.long), spec, ("a",), "digest")
    save_tokens(tmp_path / "a.parquet", dataset)
    words = [sys.executable, "-c", QUICK, tmp_path / "a.parquet"]
    subprocess.run(words, cwd=ROOT, check=True, timeout=120)
