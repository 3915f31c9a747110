"""What `ctl up` says of a system while it runs: what has changed, a line each."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.cli import up
from controlplane.local.home import Home


def told(states: list[up._State], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What it says of these states, seen one after the other; an empty line after each."""
    left = iter(states)
    monkeypatch.setattr(up, "_read_state", lambda _home: next(left))
    reporter, said = up._Reporter(Home(Path("nowhere"))), []
    for _ in states:
        reporter.look()
        captured = capsys.readouterr()
        said += [*(captured.out + captured.err).splitlines(), ""]
    return said


def state(*things: str, settled: bool = True) -> up._State:
    """A replica is ready, there is such a problem."""
    lines = {thing: f"{thing.partition('/')[2]}: here" for thing in things}
    return up._State(lines=lines, settled=settled, ready=False, models=0)


def test_what_comes_goes_and_comes_again_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = state("replica/cpu-0", "copy/cpu-0/m@1", "problem/disk")
    assert told([full, full, state(), full], capsys, monkeypatch) == [
        *("cpu-0: here", "cpu-0/m@1: here", "disk: here", ""),
        "",
        *("problem with disk: over", "replica cpu-0: gone", ""),
        *("cpu-0: here", "cpu-0/m@1: here", "disk: here", ""),
    ]


def test_a_controller_that_has_just_started_ends_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    full, started = state("replica/cpu-0", "gateway/g"), state(settled=False)
    assert told([full, started, full, state("gateway/g")], capsys, monkeypatch) == [
        *("cpu-0: here", "g: here", ""),
        "",
        "",
        *("replica cpu-0: gone", ""),
    ]
