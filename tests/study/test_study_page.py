"""The study's page and figures: well-formed, self-contained, escaped, complete."""

import base64
import csv
import io
import math
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from deploy.study.analysis.results import CellFacts, Measurement, SpeedRow, read_csv
from deploy.study.analysis.statistics import analyse
from deploy.study.page.figures import CAPTIONS, draw
from deploy.study.page.page import About, thumbnail, uneven, write_page

EVIL = "<script>alert('x')</script> & | $a_b"
METHODS = ("sft", EVIL, "c", "d")
SWEEP = (1.0, 2.0, 3.0)
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Tags that close in order, text, and addresses."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words, self.addresses = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def rows(methods=METHODS, seeds=(0, 1, 2), sweep=SWEEP):
    for seed in seeds:
        for place, name in enumerate(("teacher", "base", *methods)):
            steps = (0,) if name in ("teacher", "base") else (50, 100)
            for step in steps:
                for guidance in sweep if step != 50 else (2.0,):
                    fid = 9 + place + (2 - guidance) ** 2 + 0.1 * (seed * (place + 2) ** 2 % 5)
                    seconds = step * (1 + place / 10)
                    yield Measurement(
                        name, seed, step, step * 8, seconds, guidance, fid, 0.1, 0.5, 0.5, 3.0
                    )


def speed(methods=METHODS, batches=(1, 250)):
    for batch in batches:
        for place, name in enumerate(("teacher", *methods)):
            spent = 30.0 / (1 + place)
            times = 1.0 + place
            yield SpeedRow(
                *(name, batch, 8, spent, spent - 1, spent + 1),
                *(times, times - 0.1, times + 0.1, "cpu"),
            )


def facts(methods=METHODS, seeds=(0, 1, 2)):
    return [CellFacts(m, s, 100, 800, 110.0, 1.1, None, "cpu") for m in methods for s in seeds]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "index.html"
    found = analyse(rows(), methods=METHODS, baselines=["sft", "c"], ablation=METHODS, guidance=2.0)
    write_page(
        path,
        found,
        about=About(EVIL, "100 steps", "steps", "Inception", {"commit": EVIL}),
        facts=facts(),
        figures=draw(found, list(speed())),
        speed=list(speed()),
        samples={EVIL: Image.new("RGB", (4, 4))},
        configs={EVIL: f"name = {EVIL}"},
    )
    return path, found


def test_page_is_whole_and_needs_no_network(written):
    path, _ = written
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open
    assert all(address.startswith("data:") for address in page.addresses)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "url(" not in text
    assert "<script" not in text
    assert "better" not in text
    assert page.tags.count("img") == len(CAPTIONS) + 1


def test_page_says_what_was_measured_and_what_follows(written):
    path, _ = written
    page = Page(path.read_text(encoding="utf-8"))
    words = "\n".join(page.words)
    assert EVIL in page.words
    titles = ("What the data support", "Against sft", "Against c", "Ablation", "Definitions")
    assert all(title in words for title in titles)
    assert words.index("Teacher against base") < words.index("What cannot be said")
    assert "3 seeds (0, 1, 2)" in words
    order = [cell for cell in page.words if cell in ("teacher", "base", *METHODS)]
    assert order.index("teacher") < order.index("base") < order.index("sft")


def test_a_table_is_cards_on_a_narrow_screen(written):
    """Every cell carries the title of its column, which a phone shows in place of the header."""
    text = written[0].read_text(encoding="utf-8")
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in text
    tables = re.findall(r"<thead>(.*?)</thead>\s*<tbody>(.*?)</tbody>", text, re.DOTALL)
    assert len(tables) >= 5
    for head, body in tables:
        titles = re.findall(r"<th>(.*?)</th>", head)
        for row in re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL):
            assert re.findall(r'<td data-label="(.*?)">', row) == titles


def test_sheets_are_small_and_those_of_few_pixels_exact(written):
    from deploy.report.grids import grid

    generator = torch.Generator().manual_seed(0)
    digits = grid(torch.randint(16, (40, 1, 8, 8), generator=generator).byte() * 16, 4)
    photographs = grid(torch.randint(256, (40, 3, 96, 96), generator=generator).byte(), 4)
    for sheet, is_exact in ((digits, True), (photographs, False)):
        data = thumbnail(sheet)
        with Image.open(io.BytesIO(data)) as back:
            assert (back.format, back.size) == ("WEBP", sheet.size)
            assert (back.convert("RGB").tobytes() == sheet.tobytes()) == is_exact
        png = io.BytesIO()
        sheet.save(png, "PNG", optimize=True)
        assert len(data) < 0.7 * png.tell()


def test_embedded_data_are_the_files(written, tmp_path):
    path, found = written
    links = [a for a in Page(path.read_text(encoding="utf-8")).addresses if "text/csv" in a]
    bodies = [base64.b64decode(link.split(",")[1]) for link in links]
    measurements, cells, summary, paired, spent = bodies
    copy = tmp_path / "copy.csv"
    copy.write_bytes(measurements)
    assert read_csv(copy, Measurement) == list(found.measurements)
    copy.write_bytes(cells)
    assert read_csv(copy, CellFacts) == facts()
    copy.write_bytes(spent)
    assert read_csv(copy, SpeedRow) == list(speed())
    assert path.with_name("summary.csv").read_bytes() == summary
    assert path.with_name("paired.csv").read_bytes() == paired
    table = list(csv.DictReader(io.StringIO(paired.decode())))
    against = [r for r in table if r["family"] == "baselines" and r["view"] == "fixed"]
    assert len(against) == 3 + 2
    first = found.against["sft"][0].fixed
    assert float(against[0]["joint_low"]) == first.joint.low


def test_markdown_has_a_row_per_model(written):
    lines = written[0].with_name("summary.md").read_text(encoding="utf-8").splitlines()
    timed = 2 + len(list(speed()))
    assert len([line for line in lines if line.startswith("|")]) == 2 + 2 + len(METHODS) + timed
    assert not any("<script" in line for line in lines)
    table = [line for line in lines if line.startswith("|")]
    evil = next(line for line in table if "alert" in line)
    assert evil.startswith("| &lt;script&gt;")
    assert evil.count("|") - evil.count("\\|") == table[0].count("|")
    assert sum(line.startswith("![") for line in lines) == len(CAPTIONS)


def test_milliseconds_have_a_row_for_each_number_of_images_and_say_how_they_were_measured(written):
    words = Page(written[0].read_text(encoding="utf-8")).words
    place = words.index("Speed")
    assert "CPU time of the process, 8 rounds" in "".join(words[place : place + 6])
    cells = words[place:]
    teacher = [cells[at : at + 12] for at, word in enumerate(cells) if word == "teacher"][:2]
    found = [[word for word in row if word.strip()][:6] for row in teacher]
    assert found == [
        ["teacher", batch, "30.0", "[29.0 to 31.0]", "1.00", "[0.90 to 1.10]"]
        for batch in ("1", "250")
    ]


def test_figures_are_png(written):
    path, _ = written
    for name in CAPTIONS:
        with Image.open(path.with_name(f"{name}.png")) as image:
            assert image.format == "PNG"
            assert image.width > 400


def test_one_seed_without_sweep_or_references(tmp_path):
    only = [m for m in rows(METHODS[:1], (0,), (2.0,)) if m.method == "sft"]
    found = analyse(only, methods=["sft", "gone"], baselines=["sft"], guidance=2.0)
    figures = draw(found)
    assert set(figures) == {"forest", "steps", "seconds", "paired"}
    path = tmp_path / "index.html"
    about = About("One", "100 steps", "steps", "Inception")
    write_page(path, found, about=about, facts=[], figures=figures, samples={}, configs={})
    words = "\n".join(Page(path.read_text(encoding="utf-8")).words)
    assert "with one seed there is none" in words
    assert "gone, seed 0: no final evaluation" in words
    assert "Cannot be compared with sft" in words


def test_unequal_budgets_are_told():
    cells = [*facts(("a",)), CellFacts("b", 4, 90, 720, 110.0, 1.1, None, "cpu")]
    assert [said.split(":")[0] for said in uneven(cells, "steps")] == ["b, seed 4"]
    assert uneven(cells, "seconds") == []


EXTREMES = {
    "one seed": lambda seed, place, step: 5.0 + place,
    "equal": lambda seed, place, step: 5.0,
    "zero": lambda seed, place, step: 0.0,
    "ties by seed": lambda seed, place, step: 5.0 + seed,
    "no number": lambda seed, place, step: math.nan,
    "a cell without a number": lambda seed, place, step: math.inf if seed == place else 5.0 + seed,
    "as large as floats": lambda seed, place, step: 1e300 * (1 + seed + place),
}


@pytest.mark.filterwarnings("ignore:(overflow|invalid value):RuntimeWarning")
@pytest.mark.parametrize("baselines", [[], ["a", "base"]])
@pytest.mark.parametrize("extreme", EXTREMES)
def test_what_cannot_be_told_is_said_in_words(tmp_path, extreme, baselines):
    """Few seeds, ties and cells without a number leave no "nan" behind, and say why."""
    seeds = (0,) if extreme == "one seed" else (0, 1)
    names = ("teacher", "base", "a")
    cells = [
        Measurement(name, seed, 50 * (place > 1), 400, 1.0, 2.0, fid, fid, fid, fid, fid)
        for place, name in enumerate(names)
        for seed in seeds
        for fid in [EXTREMES[extreme](seed, place, 50)]
    ]
    found = analyse(cells, methods=["a"], baselines=baselines, ablation=["a"], guidance=2.0)
    about = About("few", "100 steps", "steps", "Inception", {})
    path = tmp_path / "index.html"
    figures = draw(found) if baselines else {}  # without baselines there are fewer
    costs = facts(["a"], seeds)
    write_page(path, found, about=about, facts=costs, figures=figures, samples={}, configs={})
    page = " ".join(Page(path.read_text(encoding="utf-8")).words)
    tables = [(tmp_path / name).read_text() for name in ("summary.csv", "paired.csv")]
    for text in (page, (tmp_path / "summary.md").read_text(), *tables):
        assert not re.search(r"(?<![a-z])(nan|None)(?![a-z])", text), text
    said = {
        "one seed": "With a single seed there are no intervals",
        "equal": "they measure no spread",
        "zero": "they measure no spread",
        "ties by seed": "they measure no spread",
        "no number": "FID is not a number at guidance 2",
        "a cell without a number": "FID is not a number at guidance 2",
        "as large as floats": "",
    }
    assert said[extreme] in page
