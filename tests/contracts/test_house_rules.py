"""The example of CONTRIBUTING.md is a file that could be committed as it stands."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIED = ("common", "rollout", "teacher_server", "learner", "deploy", "tests", "pyproject.toml")
EXAMPLE = re.compile(r"^```python\n# (learner/objectives/(\w+)\.py)\n(.*?)^```$", re.S | re.M)


def test_the_example_objective_passes_the_contract_tests(tmp_path):
    ((place, kind, code),) = EXAMPLE.findall((ROOT / "CONTRIBUTING.md").read_text())
    for name in COPIED:
        if (ROOT / name).is_dir():
            skipped = shutil.ignore_patterns("__pycache__", "*.npz", "*.safetensors")
            shutil.copytree(ROOT / name, tmp_path / name, ignore=skipped)
        else:
            shutil.copy(ROOT / name, tmp_path)
    (tmp_path / place).write_text(code)
    contracts = [
        "tests/contracts/test_objectives.py",
        "tests/learner/test_learner.py",
        "tests/learner/test_split.py",
    ]
    quiet = ["-q", "-p", "no:cacheprovider", "-k", kind]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *quiet, *contracts],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-1000:]
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed
    assert int(passed[1]) >= 6, ran.stdout
