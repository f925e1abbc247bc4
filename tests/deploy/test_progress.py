"""What people see while they wait: whole lines, count and time left first, never long silence."""

import io
import json
import re
import time

import pytest
from building.waiting import until
from rich.console import Console

from deploy.console.followed import Course, followed
from deploy.console.progress import Bar, Pace, Pulse, busy, clock

NUMBERS = {"loss": 2.3415, "img/s": 310.25, "version": 17, "lag": 1.25, "buffer": 0.5, "more": 8}
COLOUR = r"\x1b\[[0-9;]*m"


def terminal(width, **environ):
    """A console that believes to be a terminal of this width."""
    return Console(
        file=io.StringIO(),
        force_terminal=True,
        width=width,
        _environ={"TERM": "xterm", **environ},
        legacy_windows=False,
    )


def pipe():
    return Console(file=io.StringIO(), soft_wrap=True, markup=False)


def written(target):
    assert isinstance(target.file, io.StringIO)
    return target.file.getvalue()


def last_frame(target):
    frame = written(target).split("\r")[-1].splitlines()[0]
    return re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", frame)


def test_piped_progress_is_one_whole_line_however_long():
    target = pipe()
    with Bar(target, "distill", 400) as bar:
        bar.say(
            "waiting for worker-0, worker-1, worker-2, worker-3, teacher-0 and the learner's [rank]"
        )
        bar.show(400, NUMBERS)
    assert written(target).splitlines() == [
        "distill 0/400 0%  waiting for worker-0, worker-1, worker-2, worker-3, teacher-0 and the "
        "learner's [rank]",
        "distill 400/400 100%  loss 2.341  img/s 310.2  version 17  lag 1.25  buffer 0.5  more 8",
    ]


@pytest.mark.parametrize(("width", "kept"), [(120, 6), (80, 4), (60, 2), (50, 1), (40, 0)])
def test_a_narrow_terminal_drops_whole_numbers_from_the_right(width, kept):
    target = terminal(width, NO_COLOR="1")
    with Bar(target, "distill", 400) as bar:
        bar.show(100, NUMBERS)
    frame = last_frame(target)
    assert len(frame.rstrip()) <= width
    assert frame.startswith("distill 100/400 25%")
    shown = [name for name in NUMBERS if f" {name} " in frame + " "]
    assert shown == list(NUMBERS)[:kept]


def test_a_dumb_terminal_gets_plain_lines_and_no_escape_codes():
    target = terminal(80, TERM="dumb")
    with busy(target, "starting Ray"), Bar(target, "encode", 10) as bar:
        bar.show(10, {})
    assert written(target).splitlines() == ["starting Ray", "encode 10/10 100%"]


def test_no_color_is_honoured():
    target = terminal(80, NO_COLOR="1")
    with Bar(target, "encode", 10) as bar:
        bar.show(10, {})
    assert not re.search(COLOUR, written(target))
    coloured = terminal(80)
    with Bar(coloured, "encode", 10) as bar:
        bar.show(10, {})
    assert re.search(COLOUR, written(coloured))


def test_the_time_left_follows_the_pace_of_the_last_minute():
    pace = Pace()
    assert pace.left(100, 0.0) is None
    pace.see(10, 0.0)  # resumed: these ten took no time
    assert pace.left(100, 5.0) is None
    pace.see(20, 5.0)  # 2 a second, 80 to go
    assert pace.left(100, 5.0) == pytest.approx(40.0)
    assert pace.left(100, 15.0) == pytest.approx(30.0)
    for second in range(1, 101):  # then one in five seconds, for minutes
        pace.see(20 + second // 5, 5.0 + second)
    assert pace.left(100, 105.0) == pytest.approx(60 * 5, rel=0.1)
    pace.see(100, 106.0)
    assert pace.left(100, 106.0) is None


def test_where_no_news_comes_the_last_line_is_said_again_with_the_time():
    target = pipe()
    pulse = Pulse(target, lambda: "encode 3/10", quiet_seconds=0.6)
    pulse.start()
    pulse.news(due=True)
    time.sleep(1.1)
    pulse.stop()
    lines = written(target).splitlines()
    assert lines[:2] == ["encode 3/10", "encode 3/10  (unchanged for 0:01)"]


def test_clocks_are_read_as_people_read_them():
    assert [clock(s) for s in (0, 0.2, 65, 3600, 7210)] == [
        "0:00",
        "0:01",
        "1:05",
        "1:00:00",
        "2:00:10",
    ]


def row(step, when):
    return json.dumps({"step": step, "loss": 0.5 / step, "time": when}) + "\n"


def test_trainings_elsewhere_are_followed_by_what_they_write(tmp_path):
    """Not by what earlier ones wrote, nor by half a line."""
    first, second = (Course(name, 8, tmp_path / name) for name in ("one", "two"))
    first.path.write_text(row(7, time.time() - 60))
    file = io.StringIO()
    with followed(Console(file=file, width=200), first, second):
        second.path.write_text(row(1, time.time()) + row(8, time.time())[:-1])
        until(lambda: "two 1/8 12%" in file.getvalue() or time.sleep(0.01), 10)
        assert "one 7/8" not in file.getvalue()
        first.path.write_text(row(8, time.time()))
    assert file.getvalue().splitlines()[-1] == "one 8/8 100%  loss 0.0625"


def test_bars_of_one_display_are_below_each_other_on_a_terminal(tmp_path):
    courses = [Course(name, 4, tmp_path / name) for name in ("one", "two")]
    target = terminal(80, NO_COLOR="1")
    with followed(target, *courses):
        for course in courses:
            course.path.write_text(row(2, time.time()))
    frame = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", written(target).rpartition("\x1b[2K")[2])
    lines = [line.split("━")[0].strip() for line in frame.splitlines() if line.strip()]
    assert lines == ["one 2/4 50%", "two 2/4 50%"]
