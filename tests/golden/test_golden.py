"""Every tensor of every golden folder: outputs of the official implementations on tiny weights.

$VARKD_GOLDEN names another set of folders of the same form. A tensor (or table) that no check
asked for fails its folder. The checks are in tests/golden_checks.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from golden import Golden
from golden_tokenizers import check_adm_crop, check_llamagen_vq, check_var_vqvae
from golden_transformers import check_arpg, check_llamagen, check_var

from common.device import place
from common.models.plan import DecodePlan

ROOT = Path(os.environ.get("VARKD_GOLDEN") or Path(__file__).parent)
FOLDERS = sorted(path.parent for path in ROOT.glob("*/io.safetensors"))
CHECKS = {
    "llamagen": check_llamagen,
    "llamagen_vq": check_llamagen_vq,
    "var": check_var,
    "var_vqvae": check_var_vqvae,
    "arpg": check_arpg,
    "adm_crop": check_adm_crop,
}


def test_the_golden_folders_are_there():
    families = {json.loads((f / "config.json").read_text())["family"] for f in FOLDERS}
    assert families <= set(CHECKS), "a family without checks"
    if "VARKD_GOLDEN" not in os.environ:
        assert families == set(CHECKS)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_every_tensor_agrees(folder, tmp_path):
    golden = Golden(folder)
    CHECKS[golden.facts["family"]](golden, tmp_path)
    assert set(golden.tensors) == golden.seen, "tensors without a check"
    tables = {path.name for path in folder.glob("*.json")} - {"config.json"}
    assert tables <= {"schedules.json", "phi_index_table.json"}, "tables without a check"


HALF = 0.4
"""Bound on the difference of a logit in bfloat16. Measured on a CPU, cast (and under autocast):
LlamaGen 0.27 (0.23), ARPG 0.17 (0.19), VAR 0.16 (0.13), at logits of standard deviation 1.7 to 2.1.
On a GPU, float32 must stay within the folders' own tolerances."""


def logits_of(folder, tmp_path, prepare):
    """Teacher-forced logits after `prepare(model)`, beside the official float32 ones."""
    golden, kept = Golden(folder), []
    CHECKS[golden.facts["family"]](golden, tmp_path, kept.append)
    model = kept[0]
    prefix = f"g{model.spec.grid[0]}." if "grids" in golden.facts else ""
    labels, tokens = golden[f"{prefix}labels"], golden[f"{prefix}tokens"]
    plan = model.plan(range(len(labels)))
    if "order" in golden.tensors:
        plan = DecodePlan(golden["order"], (1,) * tokens.shape[1])
        tokens = tokens.gather(1, plan.order_BL)
    with torch.no_grad():
        found = prepare(model)(labels, tokens, plan)
    return found.float().cpu(), golden[f"{prefix}tf_logits"]


TRANSFORMERS = [f for f in FOLDERS if f.name in ("llamagen", "arpg", "var")]


@pytest.mark.parametrize("folder", TRANSFORMERS, ids=lambda path: path.name)
def test_bfloat16_stays_close(folder, tmp_path):
    found, wanted = logits_of(folder, tmp_path, lambda model: model.to(torch.bfloat16))
    assert 0 < (found - wanted).abs().max() < HALF


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("folder", TRANSFORMERS, ids=lambda path: path.name)
def test_fused_attention_on_a_gpu_agrees(folder, tmp_path, dtype):
    def on_gpu(model):
        model = model.to(place("cuda"), dtype)
        return lambda label, token, plan: model(label.cuda(), token.cuda(), plan)

    found, wanted = logits_of(folder, tmp_path, on_gpu)
    assert (found - wanted).abs().max() < (2e-4 if dtype == torch.float32 else HALF)
