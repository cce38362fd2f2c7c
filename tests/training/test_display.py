import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from synthkd.training.display import Display, Pace


@pytest.fixture
def clock():
    class Clock(SimpleNamespace):
        def __call__(self):
            return self.now

    return Clock(now=100.0)


def piped():
    return Console(file=io.StringIO(), width=200)


def lines(console):
    return console.file.getvalue().splitlines()


def test_time_left_follows_the_measured_pace(clock):
    pace = Pace(clock)
    assert pace.seconds_for(10) is None
    pace.mark(0)
    assert pace.seconds_for(10) is None
    clock.now += 2
    pace.mark(8)
    assert pace.seconds_for(100) == pytest.approx(25.0)


def test_steps_of_an_earlier_life_do_not_count(clock):
    pace = Pace(clock)
    pace.mark(5001)
    clock.now += 10
    pace.mark(5021)
    assert pace.seconds_for(100) == pytest.approx(50.0)


def test_pace_is_that_of_the_last_minute(clock):
    pace = Pace(clock)
    step = 0
    for speed in (10, 1):
        for _ in range(1000):
            clock.now += 0.1 if speed == 10 else 1.0
            step += 1
            pace.mark(step)
    assert pace.seconds_for(60) == pytest.approx(60.0, rel=0.02)
    assert len(pace._marks) < 70


def test_pace_starts_anew_when_steps_go_back(clock):
    pace = Pace(clock)
    for step in (90, 100, 50):
        clock.now += 1
        pace.mark(step)
    assert pace.seconds_for(10) is None


def test_piped_output_is_plain_and_rare(clock):
    console = piped()
    with Display(1000, "distill digits", console=console, clock=clock) as display:
        for step in range(1, 1001):
            clock.now += 1 / 64
            display.update(step, "joint" if step <= 500 else "refine", {"loss": 0.41234, "test accuracy": 0.9})
    shown = lines(console)
    assert shown[0] == "distill digits: 1/1000 · joint · 0:00:00 elapsed · loss 0.412 · test accuracy 0.900"
    assert shown[1].startswith("distill digits: 321/1000 · joint · 0:00:05 elapsed · 0:00:11 left · loss 0.412")
    assert [line.split()[2] for line in shown] == ["1/1000", "321/1000", "501/1000", "821/1000", "1000/1000"]
    assert "\x1b" not in console.file.getvalue()


def test_last_step_is_shown_once(clock):
    console = piped()
    with Display(10, "t", console=console, clock=clock) as display:
        for step in (9, 10, 10):
            display.update(step, "refine", {})
    assert [line.split()[1] for line in lines(console)] == ["9/10", "10/10"]


def test_message_is_printed_as_it_stands(clock):
    console = piped()
    with Display(10, "t", console=console, clock=clock) as display:
        display.message("alarm: class [bold]7[/bold] is rare")
    assert lines(console) == ["alarm: class [bold]7[/bold] is rare"]


def test_disabled_display_says_nothing(clock):
    console = Console(file=io.StringIO(), force_terminal=True)
    with Display(10, "t", enabled=False, console=console, clock=clock) as display:
        display.update(10, "joint", {"loss": 1.0})
        display.message("hello")
    assert console.file.getvalue() == ""


def test_terminal_shows_a_bar_with_values_and_messages():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    with Display(400, "distill digits", console=console) as display:
        display.update(100, "joint", {"loss": 0.5, "difficulty": 0.36})
        display.message("difficulty [raised]")
    text = console.file.getvalue()
    assert "distill digits" in text
    assert "joint" in text
    assert "25%" in text
    assert "100/400" in text
    assert "loss 0.500 · difficulty 0.360" in text
    assert "difficulty [raised]" in text


def test_terminal_is_given_back_after_an_error():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)

    def fail():
        with Display(4, "t", console=console) as display:
            display.update(1, "joint", {})
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert console.file.getvalue().rstrip().endswith("\x1b[?25h"), "the cursor is shown again"
