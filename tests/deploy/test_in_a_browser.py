"""report.html as a phone shows it, in headless Chromium."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.report.html_page import Progress, render
from deploy.run_folder.opening import open_run
from deploy.run_folder.workspace import Workspace

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
PHONE = 360
"""Pixels of width, in CSS."""
PROBE = """<!doctype html><body style="margin:0">
<iframe id="page" src="report.html" style="border:0; width:%dpx; height:780px"></iframe>
<pre id="found"></pre><script>
page.onload = () => {
  const inside = page.contentDocument, root = inside.documentElement;
  const all = [...inside.body.querySelectorAll("*")], box = (e) => e.getBoundingClientRect();
  const cut = [...inside.querySelectorAll("svg text")].filter((text) => {
    const svg = box(text.closest("svg")), own = box(text);
    return own.left < svg.left || own.right > svg.right;
  });
  const clips = (e) => e && (getComputedStyle(e).overflowX != "visible" || clips(e.parentElement));
  const wide = all.filter((e) => box(e).right > root.clientWidth && !clips(e.parentElement));
  found.textContent = JSON.stringify({
    title: inside.title, width: root.clientWidth, scroll: root.scrollWidth,
    charts: inside.querySelectorAll("svg").length,
    cut: cut.map((text) => text.textContent), wide: wide.map((e) => e.outerHTML.slice(0, 80)),
    short: box(inside.querySelector(".facts .long")).width / box(inside.body).width,
  });
};
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_page_fits_a_phone(tmp_path):
    root = tmp_path / ("a-run-of-a-long-name" * 4)
    root.mkdir()
    config, workspace = open_run(Path("smoke"), [], root)[0], Workspace(root)
    progress = Progress(config)
    progress.add(
        {
            **{"step": step, "time": 1e9 + step, "pid": 1, "version": step, "loss": 1e-7 * step},
            **{"images_total": 8e5 * step, "seconds/wait": 0.5, "seconds/step": 0.5},
            **{"images_per_second": 123456.0 * step, "buffer/fill": -1.5e-5 / step},
            **{f"divergence/{'context' * 9}": 1e9 * step, "lr": 2.5e-5 / step},
        }
        for step in range(1, 20)
    )
    busy = {"learner": 0.35, "teacher": 0.24, "rollout": 0.23}
    facts = {"deaths": {"worker-0": "killed " + "x" * 200}, "cause": "y" * 200, "busy": busy}
    report = {"metrics": {f"{'student' * 5}-{n}": {"fid": 3.0, "kid": 0.1} for n in range(9)}}
    (root / "report.html").write_text(render(progress, workspace, False, facts, report))
    (root / "probe.html").write_text(PROBE % PHONE)
    assert CHROMIUM is not None
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    words += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000"]
    shown = subprocess.run(
        [CHROMIUM, *words, "--dump-dom", (root / "probe.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "HOME": str(tmp_path)},
        check=True,
    )
    line = re.search(r'<pre id="found">(.+?)</pre>', shown.stdout, re.DOTALL)
    assert line is not None, shown.stderr
    found = json.loads(line[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert found["title"] == root.name
    assert found["scroll"] == found["width"] <= PHONE, found
    assert (found["wide"], found["cut"]) == ([], []), found
    assert found["charts"] >= 4
    assert found["short"] > 0.8, "a sentence has the whole width"
