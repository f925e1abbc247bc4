"""report.html: whole while a run goes on, and nothing in it but what we wrote."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from deploy.report.chart import chart
from deploy.report.curve import MOST, Curve
from deploy.report.html_page import PageLogger, Progress, duration, render, write_page
from deploy.run_folder.opening import open_run
from deploy.run_folder.workspace import Workspace

HOSTILE = '"><script>alert(1)</script><img src=http://x.example/a.png>'
VOID = {"meta", "img", "br", "rect", "polyline"}


class Page(HTMLParser):
    """Elements with their attributes; fails where they are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.found, self.texts, self._open = [], [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert tag in VOID or self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.found if name == tag]


def require_harmless(page):
    assert not page.all("script") + page.all("link") + page.all("iframe")
    for _, attrs in page.found:
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("src", "href", "data", "action"):
            assert attrs.get(name, "data:").startswith("data:image/png;base64,"[:5])


def rows(count, first=1, **more):
    return [
        {
            **{"step": step, "time": 1e9 + 2 * step, "pid": 1, "version": step, "loss": 1 / step},
            **{"images_total": 8 * step, "seconds/wait": 0.5, "seconds/step": 0.5},
            **{"seconds/rollout": 2.0, "seconds/teacher": 3.0, "images_per_second": 4.0},
            **more,
        }
        for step in range(first, first + count)
    ]


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "<b onload=x>&amp;"
    folder.mkdir()
    return open_run(Path("smoke"), ["learner.steps=100"], folder)[0], Workspace(folder)


def test_names_from_outside_are_text_and_nothing_else_is_asked_for(run):
    config, workspace = run
    progress = Progress(config)
    progress.add(rows(5, **{f"divergence/{HOSTILE}": 0.5, "loss": float("nan")}))
    facts = {"deaths": {HOSTILE: f"killed by {HOSTILE}"}, "cause": HOSTILE}
    facts |= {"replaced": {HOSTILE: {"by": HOSTILE, "seconds": 2.345}}}
    facts |= {"restarts": [{"from": 2, "reached": 4, "seconds": 12.0}]}
    report = {"metrics": {HOSTILE: {f"fid{HOSTILE}": 3.0, "kid": None}}}
    (workspace.root / "samples.png").write_bytes(b"png")
    page = Page(render(progress, workspace, False, facts, report))
    require_harmless(page)
    text = " ".join(page.texts)
    assert text.count(HOSTILE) == 7, "as text, in the title of no element"
    assert f"{HOSTILE} was in its place after 2.3 s" in text
    assert "learner began again at step 2 after 12 s" in " ".join(text.split())
    assert workspace.root.name in page.texts
    assert [image["src"] for image in page.all("img")] == ["data:image/png;base64,cG5n"]
    assert page.all("meta")[1]["content"].startswith("width=device-width")
    assert {line["class"] for line in page.all("polyline")} <= {f"c{n}" for n in range(6)}
    assert not [meta for meta in page.all("meta") if meta.get("http-equiv")]


def test_a_page_is_there_while_the_run_goes_on_and_says_how_it_ended(run):
    config, workspace = run
    path = workspace.root / "report.html"
    workspace.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows(10)))
    logger = PageLogger(config, workspace, every=0)
    logger.write(rows(2, first=9))
    page = Page(path.read_text())
    require_harmless(page)
    text = " ".join(page.texts)
    assert "Step 10 of 100, running; about 3 min left" in text
    assert "rollout (learner 50%, rollout 100% busy; more rollout.workers" in text
    assert {"http-equiv": "refresh", "content": "60"} in page.all("meta")
    (loss,) = [f for f in page.all("svg") if f["aria-label"] == "Loss"]
    first = page.found.index(("svg", loss))
    points = next(attrs["points"] for tag, attrs in page.found[first:] if tag == "polyline")
    assert len(points.split()) == 10, "what was on disk before is in the curve, once"
    PageLogger(config, workspace, every=1000).write(rows(2, first=11))
    assert "Step 10 of" in path.read_text(), "a minute has not passed"
    logger.close()
    assert "Step 10 of 100: ended; the command said why" in path.read_text()
    status = {"state": "ended", "cause": f"it failed {HOSTILE}", "deaths": {"buffer": "killed"}}
    (workspace.root / "control").mkdir()
    (workspace.root / "control" / "status.json").write_text(json.dumps(status))
    logger.close()
    text = " ".join(Page(path.read_text()).texts)
    assert f"Step 10 of 100: it failed {HOSTILE}" in text
    assert "buffer : killed" in text
    busy = {"learner": 0.95, "rollout": 0.2}
    write_page(config, workspace, {"cause": "stopped by SIGTERM", "busy": busy})
    assert "learner (learner 95%, rollout 20% busy;" in path.read_text()
    assert "Step 10 of 100: stopped by SIGTERM" in path.read_text()
    assert "http-equiv" not in path.read_text()


def test_a_curve_stays_small_and_keeps_its_course():
    curve = Curve()
    for step in range(100_000):
        curve.add(step, step)
        curve.add(step, float("inf"))
    points = curve.points()
    assert MOST / 2 <= len(points) <= MOST
    assert all(abs(step - value) < 1 for step, value in points)
    assert points == sorted(points)
    assert (points[0][0] < 1000, points[-1][0] > 99_000) == (True, True)


def test_a_chart_stays_in_its_frame():
    curve = Curve()
    for step, value in ((1, 2.0), (2, -3.0), (3, 7.0)):
        curve.add(step, value)
    drawn = chart("t", {"a": curve, "empty": Curve()})
    assert drawn is not None
    assert [(line.label, line.points) for line in drawn.lines] == [
        ("a", "46.0,61.0 180.0,114.0 314.0,8.0")
    ]
    assert (drawn.low, drawn.high, drawn.first, drawn.last) == ("-3", "7", "1", "3")
    assert chart("t", {"empty": Curve()}) is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        *((1430.2, "1.43k"), (999.96, "1k"), (-25e6, "-25M"), (3.2e12, "3.2T"), (7e17, "7e+17")),
        *((0.12345, "0.123"), (3e-5, "3e-05"), (-1.234e-5, "-1e-05"), (0.001234, "0.0012")),
    ],
)
def test_what_stands_at_a_curve_has_room(value, said):
    curve = Curve()
    curve.add(1, value)
    drawn = chart("t", {"a": curve})
    assert drawn is not None
    assert drawn.high == said


def test_durations_are_for_people():
    found = [duration(seconds) for seconds in (5, 300, 4 * 3600, 4 * 86400)]
    assert found == ["5 s", "5 min", "4 h", "4.0 days"]
