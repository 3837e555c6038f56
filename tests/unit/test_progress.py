import io
import sys

from cda import progress
from cda.progress import Progress, track


def test_a_log_gets_plain_lines_with_rate_and_time_left(capsys, monkeypatch):
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    counter = Progress(4, "squeeze run", "steps")
    for loss in (3, 2, 1, 0):
        counter.note = f"loss {loss}"
        counter.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("squeeze run: 4/4 steps, ")
    assert lines[-1].endswith(" 0:00 left, loss 0")
    assert all("\r" not in line and "steps/s" in line for line in lines)


def test_a_resumed_count_starts_where_it_was(capsys):
    counter = Progress(10, "recover run", done=8)
    counter.update(2)
    assert capsys.readouterr().err.startswith("recover run: 10/10 it, ")


def test_a_terminal_gets_a_bar(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", screen)
    assert list(track("abc", total=3, label="reading", unit="images")) == ["a", "b", "c"]
    assert "reading: 100%" in screen.getvalue()
    assert "3.00/3.00" in screen.getvalue()
