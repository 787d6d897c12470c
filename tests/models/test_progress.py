"""How far long work is: lines where nobody watches, a bar on a terminal."""

import io

import pytest

from models.progress import TextProgress


class Terminal(io.StringIO):
    """Standard error that somebody watches."""

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """A function that puts a terminal of some columns in the place of standard error.

    Not the terminal itself: between a test's fixtures and the test pytest sets standard error anew.
    """

    def start(columns):
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr("sys.stderr", found := Terminal())
        return found

    return start


def test_time_is_told_by_what_a_shard_took(capsys):
    """Sixty texts in a minute, a hundred left."""
    with TextProgress("lime", 200, 40, every=0) as progress:
        progress.started -= 60
        progress.add(60)
        progress.add(100)
    assert capsys.readouterr().err.splitlines() == [
        "lime: 40/200 texts done already",
        "lime: 100/200 texts done, about 0:01:40 left",
        "lime: 200/200 texts in 0:01:00",
    ]


def test_nothing_is_said_where_nothing_is_left(capsys, terminal):
    with TextProgress("lime", 200, 200):
        pass
    assert capsys.readouterr().err == ""
    shown = terminal(80)
    with TextProgress("lime", 200, 200):
        pass
    assert shown.getvalue() == ""


def test_on_a_terminal_it_is_a_bar_that_starts_where_it_was(terminal):
    shown = terminal(100)
    with TextProgress("lime", 200, 40) as progress:
        progress.started -= 60
        progress.add(60)
        progress.add(100)
    assert shown.getvalue().endswith("\n")
    first, second, third = shown.getvalue().removesuffix("\n").split("\r")[1:]
    assert first.startswith(f"lime: [{'#' * 8}{'-' * 32}] 40/200 texts ")
    assert second.startswith(f"lime: [{'#' * 20}{'-' * 20}] 100/200 texts about 0:01:40 left")
    assert third.startswith(f"lime: [{'#' * 40}] 200/200 texts in 0:01:00")


def test_a_bar_fits_into_a_narrow_terminal(terminal):
    shown = terminal(45)
    with TextProgress("lime", 200, 40) as progress:
        progress.add(60)
    for line in shown.getvalue().split("\r")[1:]:
        assert len(line.removesuffix("\n").removesuffix("\x1b[K")) < 45
