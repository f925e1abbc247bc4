"""What people see while they wait: whole lines, count and time left first, never long silence."""

import io
import re
import time

import pytest
from rich.console import Console

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
