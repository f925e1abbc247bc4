"""Planning leaves torch's compiler alone, which is there for whoever asks afterwards."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLANS = """
import sys
import torch
from deploy.planning.blank_tensors import peak_bytes

table = torch.empty(5, 3, device="meta", requires_grad=True)
index = torch.empty(4, 2, dtype=torch.long, device="meta")

def run():
    optimizer = torch.optim.AdamW([table])
    rows = torch.nn.functional.embedding(index, table)
    torch.cat([rows, rows]).sum().backward()
    optimizer.step()

assert peak_bytes(run) > 0
assert "torch._dynamo" not in sys.modules
import torch._dynamo
assert torch._dynamo.disable(run) is not run
"""


def test_planning_imports_no_compiler_and_leaves_none_in_its_place():
    subprocess.run([sys.executable, "-c", PLANS], cwd=ROOT, check=True, timeout=120)
