"""The examples of docs/plugins.md and CONTRIBUTING.md could be committed as they stand."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from building.runs import TINY

from deploy.run_folder.opening import open_run

ROOT = Path(__file__).parents[2]
ROLES = ("common", "rollout", "teacher_server", "learner", "deploy")
COPIED = (*ROLES, "benchmarks", "tests", "pyproject.toml")
EXAMPLE = re.compile(r"^```python\n# (\S+\.py)\n(.*?)^```$", re.S | re.M)
CONTRACTS = (
    "tests/contracts/test_objectives.py",
    "tests/contracts/test_mixtures.py",
    "tests/contracts/test_backbones.py",
    "tests/contracts/test_tokenizers.py",
    "tests/contracts/test_token_sources.py",
    "tests/contracts/test_generators.py",
    "tests/contracts/test_scorers.py",
    "tests/contracts/test_conditions.py",
    "tests/learner/test_learner.py",
    "tests/learner/test_split.py",
)


EXAMPLES = EXAMPLE.findall((ROOT / "docs/plugins.md").read_text())
HOUSE_EXAMPLE = EXAMPLE.findall((ROOT / "CONTRIBUTING.md").read_text())


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the repository with every example in its place."""
    root = tmp_path_factory.mktemp("examples")
    skipped = shutil.ignore_patterns("*.npz", "*.safetensors", "*.pt", "*.pth")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name, ignore=skipped)
        else:
            shutil.copy(ROOT / name, root)
    for place, code in [*EXAMPLES, *HOUSE_EXAMPLE]:
        assert not (root / place).exists(), place
        (root / place).write_text(code)
    return root


def kinds_of(folder):
    """Names of the examples of one folder."""
    return [Path(place).stem for place, _ in EXAMPLES if place.startswith(f"{folder}/")]


def chosen():
    """Overrides of a run that uses an example of every kind that a run can have."""
    (signal,), (context,), (objective,), (table,) = (
        kinds_of(folder)
        for folder in (
            "common/exchange/signals",
            "rollout/contexts",
            "learner/objectives",
            "common/exchange/conditions",
        )
    )
    return [
        f"objective.kind={objective}",
        f"contexts.sources.{context}.ratio=3.0",
        f"teacher.signal.kind={signal}",
        f"conditions.kind={table}",
    ]


def least_tests():
    """Contract tests that must have passed, by the kind of an example."""
    ((house, _),) = HOUSE_EXAMPLE
    assert house.startswith("learner/objectives/")
    found = {Path(house).stem: 6}
    for folder in (
        "learner/objectives",
        "common/models/backbones",
        "common/tokenization/tokenizers",
        "common/data/token_sources",
        "common/models/generators",
        "teacher_server/scorers",
        "common/exchange/conditions",
    ):
        found |= dict.fromkeys(kinds_of(folder), 1)
    return found


def run(tree, *words):
    done = subprocess.run(
        [sys.executable, *words], cwd=tree, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return done.stdout


TRIED = """
import json, sys
import pytest, torch
from deploy.main import main

def ended(command, arguments):
    try:
        return command(arguments)
    except SystemExit as end:
        return end.code

tests, distillation = json.loads(sys.argv[1])
print("tests:", int(ended(pytest.main, tests)))
print("distillation:", ended(main, distillation))

from common.tokenization.tokenizers import brightness
t = brightness.Config(vocab_size=4).build(size=4, channels=1)
level = torch.tensor([[0, 85], [170, 255]], dtype=torch.uint8)
image = level.repeat_interleave(2, 0).repeat_interleave(2, 1)[None, None]
print("brightness:", t.encode(image).tolist(), torch.equal(t.decode(t.encode(image)), image))
"""


@pytest.fixture(scope="module")
def distilled(prepared, tmp_path_factory):
    """The folder of a run that the examples are to make."""
    root = tmp_path_factory.mktemp("distilled")
    shutil.copytree(prepared, root, dirs_exist_ok=True)
    (root / "config.toml").unlink(missing_ok=True)
    config, workspace = open_run(Path("smoke"), [*TINY, "learner.steps=2"], root)
    workspace.keep_config(config)
    return workspace


@pytest.fixture(scope="module")
def said(tree, distilled):
    """What one process says that tries the examples in turn: imports take longer than all else."""
    kinds = " or ".join(least_tests())
    tests = ["-q", "-n", "0", "-p", "no:cacheprovider", "-k", kinds, "-rA", *CONTRACTS]
    distillation = ["distill", str(distilled.root), "--local", *chosen()]
    return run(tree, "-c", TRIED, json.dumps([tests, distillation]))


def test_every_folder_of_plugins_has_an_example():
    table = re.findall(r"^\| \[\w.*?\| `(\S+)` \|", (ROOT / "docs/plugins.md").read_text(), re.M)
    assert len(table) >= 6
    for folder in table:
        assert kinds_of(folder), folder


def test_the_examples_pass_the_contract_tests(said):
    assert "tests: 0\n" in said, said
    for kind, count in least_tests().items():
        assert len(re.findall(rf"^PASSED .*{kind}", said, re.M)) >= count, said


def test_a_distillation_takes_objective_context_signal_and_conditions(said, distilled):
    assert "distillation: 0\n" in said, said
    text = distilled.metrics.read_text()
    (context,), (objective,) = kinds_of("rollout/contexts"), kinds_of("learner/objectives")
    assert f'"share/{context}"' in text
    assert f'"{objective}"' in distilled.config.read_text()
    assert text.count("\n") == 2


def test_a_command_is_listed_and_runs(tree):
    assert "seeds" in run(tree, "-m", "deploy.main", "--help")
    numbers = run(tree, "-m", "deploy.main", "seeds", "3").split()
    assert len(set(numbers)) == 3


def test_brightness_keeps_what_it_can_tell(said):
    """Grey squares on its own steps come back to the bit."""
    assert "brightness: [[0, 1, 2, 3]] True\n" in said, said
