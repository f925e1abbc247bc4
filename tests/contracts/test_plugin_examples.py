"""The examples of docs/plugins.md and CONTRIBUTING.md could be committed as they stand."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COPIED = ("common", "rollout", "teacher_server", "learner", "deploy", "tests", "pyproject.toml")
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


def run(tree, *words):
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=tree, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return done.stdout


def kinds_of(folder):
    """Names of the examples of one folder."""
    return [Path(place).stem for place, _ in EXAMPLES if place.startswith(f"{folder}/")]


def test_every_folder_of_plugins_has_an_example():
    table = re.findall(r"^\| \[\w.*?\| `(\S+)` \|", (ROOT / "docs/plugins.md").read_text(), re.M)
    assert len(table) >= 6
    for folder in table:
        assert kinds_of(folder), folder


def test_the_examples_pass_the_contract_tests(tree):
    ((house, _),) = HOUSE_EXAMPLE
    assert house.startswith("learner/objectives/")
    least = {Path(house).stem: 6}  # tests
    for folder in (
        "learner/objectives",
        "common/models/backbones",
        "common/tokenization/tokenizers",
        "common/data/token_sources",
        "common/models/generators",
        "teacher_server/scorers",
        "common/exchange/conditions",
    ):
        least |= dict.fromkeys(kinds_of(folder), 1)
    kinds = " or ".join(least)
    said = run(tree, "pytest", "-q", "-p", "no:cacheprovider", "-k", kinds, "-rA", *CONTRACTS)
    for kind, count in least.items():
        assert len(re.findall(rf"^PASSED .*{kind}", said, re.M)) >= count, said


def test_a_distillation_takes_objective_context_signal_and_conditions(tree, run_in):
    config, workspace = run_in("learner.steps=2")
    workspace.keep_config(config)
    (signal,), (context,) = kinds_of("common/exchange/signals"), kinds_of("rollout/contexts")
    (objective,), (table,) = (
        kinds_of(folder) for folder in ("learner/objectives", "common/exchange/conditions")
    )
    chosen = (
        f"objective.kind={objective}",
        f"contexts.sources.{context}.ratio=3.0",
        f"teacher.signal.kind={signal}",
        f"conditions.kind={table}",
    )
    run(tree, "deploy.main", "distill", str(workspace.root), "--local", *chosen)
    text = workspace.metrics.read_text()
    assert f'"share/{context}"' in text
    assert f'"{objective}"' in workspace.config.read_text()
    assert text.count("\n") == 2


def test_a_command_is_listed_and_runs(tree):
    assert "seeds" in run(tree, "deploy.main", "--help")
    numbers = run(tree, "deploy.main", "seeds", "3").split()
    assert len(set(numbers)) == 3


def test_brightness_keeps_what_it_can_tell(tree):
    """Grey squares on its own steps come back to the bit."""
    code = (
        "import torch; from common.tokenization.tokenizers import brightness as b\n"
        "t = b.Config(vocab_size=4).build(size=4, channels=1)\n"
        "level = torch.tensor([[0, 85], [170, 255]], dtype=torch.uint8)\n"
        "image = level.repeat_interleave(2, 0).repeat_interleave(2, 1)[None, None]\n"
        "print(t.encode(image).tolist(), torch.equal(t.decode(t.encode(image)), image))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert done.stdout.strip() == "[[0, 1, 2, 3]] True", done.stderr
