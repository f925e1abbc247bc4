"""The pages in docs/ say what the code does: rooms, sentences, citations, links."""

import ast
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RULES = runpy.run_path(str(ROOT / "tests/contracts/test_import_rules.py"))
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
CITING = ("common", "rollout", "teacher_server", "learner", "deploy", "tests", "benchmarks")
CITATION = re.compile(r'docs/(\w+\.md), "([^"]+)"')
LINK = re.compile(r"\]\(([^)\s]+)\)")


def slug(heading: str) -> str:
    """As Python-Markdown makes an anchor of a heading."""
    plain = re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower()
    return re.sub(r"[-\s]+", "-", plain)


def headings(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
    return re.findall(r"^#+ (.+)$", text, re.M)


def sentences(path: Path) -> list[str]:
    """Every text in a file, with … for what is filled in."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
        elif isinstance(node, ast.JoinedStr):
            parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
            found.append("".join(map(str, parts)))
    return found


def test_the_page_on_architecture_names_every_room():
    rows = re.findall(
        r"^\| `((?:common|deploy)\.\w+)` \|", (DOCS / "architecture.md").read_text(), re.M
    )
    assert sorted(rows) == sorted(RULES["ROOMS"])


def test_every_quoted_sentence_occurs_in_the_code():
    quotes = re.findall(r"^> (.+)$", (DOCS / "troubleshooting.md").read_text(), re.M)
    assert len(quotes) > 20
    said = [sentence for path in RULES["FILES"] for sentence in sentences(path)]
    missing = []
    for quote in quotes:
        pattern = re.compile(".*?".join(re.escape(part) for part in quote.split("…")))
        if not any(pattern.search(sentence) for sentence in said):
            missing.append(quote)
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    broken = []
    for target in LINK.findall(re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        if not there.exists() or (
            anchor and there.suffix == ".md" and anchor not in map(slug, headings(there))
        ):
            broken.append(target)
    assert not broken


def test_the_readme_is_a_page_with_two_commands():
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 120
    install = (
        "python3 -m venv .venv && . .venv/bin/activate && "
        'pip install -e ".[dev]" -c constraints/cpu.txt'
    )
    assert [line for line in text.split("\n") if line.startswith("python3")] == [
        f"{install} && varkd smoke",
        f"{install} && pytest",
    ]


def test_the_page_on_records_has_the_columns_and_the_version_of_the_code():
    from common.exchange import trajectory

    page = (DOCS / "records.md").read_text()
    table = page.split("## Columns")[1].split("## Metadata")[0]
    columns = set(re.findall(r"^\| `([\w.]+)` \|", table, re.M))
    legend = (trajectory.__doc__ or "").split("(schema version 3):")[1].split("Schema meta")[0]
    names = re.findall(r"^    ([\w.]+(?:, \w+)*),?(?: +|$)", legend, re.M)
    known = {name for line in names for name in line.split(", ")}
    assert columns == known
    assert f"(schema version {trajectory.SCHEMA_VERSION})" in page.splitlines()[0]


def test_every_config_key_that_a_page_names_exists():
    from common.config.sections import Section
    from deploy.config import RunConfig

    def is_known(key):
        here = Section.of(RunConfig)
        for name in key.split("."):
            if not here.knows(name):
                return False
            here = here.below(name)
        return True

    sections = "|".join(sorted(RunConfig.model_fields))
    named = re.compile(rf"(?<![\w./])(?:{sections})\.[a-z_]+(?:\.[a-z_]+)*(?![\w./(]|\.\w)")
    other = ("kind", "safetensors", "parquet", "jsonl", "png", "md", "json", "toml", "py")
    wrong = []
    for page in PAGES:
        text = re.sub(r"^```python.*?^```", "", page.read_text(), flags=re.S | re.M)
        spans = re.findall(r"`([^`\n]+)`", text) + re.findall(
            r"^```\w*\n(.*?)^```", text, re.S | re.M
        )
        for key in {key for span in spans for key in named.findall(span)}:
            if key.rpartition(".")[2] not in other and not is_known(key):
                wrong.append(f"{page.name}: {key}")
    assert not wrong


def cited() -> list[tuple[str, str, str]]:
    """(file, page, heading) of every citation in code and configs."""
    found = []
    for path in [
        *(p for folder in CITING for p in sorted((ROOT / folder).rglob("*.py"))),
        *sorted((ROOT / "deploy/configs").glob("*.toml")),
    ]:
        text = re.sub(r"\s+(?:# )?", " ", path.read_text())
        found += [(str(path.relative_to(ROOT)), *hit) for hit in CITATION.findall(text)]
    return found


def test_every_citation_names_a_page_and_a_heading():
    citations = cited()
    assert len(citations) > 70
    known = {page.name: headings(page) for page in DOCS.glob("*.md")}
    wrong = [hit for hit in citations if hit[2] not in known.get(hit[1], [])]
    assert not wrong


def test_nothing_is_cited_that_is_not_in_the_repository():
    """Pages are cited as `docs/method.md, "Gate"`."""
    here = Path(__file__)
    outside = [
        f"{path.relative_to(ROOT)}: {hit}"
        for folder in CITING
        for path in sorted((ROOT / folder).rglob("*.py"))
        for hit in re.findall(
            r"(?<![\w/])\w+\.md\b(?= \d)|(?<!docs/)\b(?:method|backbones)\.md", path.read_text()
        )
        if path != here
    ]
    assert not outside
