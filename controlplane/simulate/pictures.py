"""Draws what happened: the demand, the replicas by policy, the waits."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from controlplane.core.errors import InvalidInput
from controlplane.simulate.oracle import concurrency
from controlplane.simulate.outcomes import Outcome, goal_s
from controlplane.simulate.policies import STEP_S
from controlplane.simulate.replay import Setting
from controlplane.simulate.traces import Floats, Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = (".png", ".svg")
INCHES = (10.0, 8.0)
DOTS_PER_INCH = 100
DEMAND = "#9aa5b1"
COLOURS = ("#0b6e4f", "#d1495b", "#edae49", "#00798c", "#5b5f97")
"""Ours, then its peers: told apart with any colour vision, and on paper by their width."""
POINTS = 300
LEAST_WAIT_S = 0.01
"""Waits below are drawn here: the axis is logarithmic."""


def check_plot(path: Path) -> None:
    """Raise InvalidInput, before anything is computed, where no picture can be left."""
    if path.suffix.lower() not in KINDS:
        what = f"{str(path)!r} names no kind of picture that can be made"
        raise InvalidInput(what, field="--plot", remedy=f"end it with {' or '.join(KINDS)}")
    if not path.absolute().parent.is_dir():
        what = f"there is no folder {path.absolute().parent}"
        raise InvalidInput(what, field="--plot", remedy="make it, or name another")
    if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        what = f"{path} {'is a folder' if path.is_dir() else 'may not be written'}"
        raise InvalidInput(what, field="--plot", remedy="name another file")
    try:
        import matplotlib  # noqa: F401, PLC0415 - takes long to import, and only a picture needs it
    except ImportError as error:
        remedy = "install matplotlib (it is in the extra `cli`), or leave --plot away"
        raise InvalidInput("pictures need matplotlib, which is not installed", field="--plot", remedy=remedy) from error


def draw(path: Path, trace: Trace, setting: Setting, outcomes: Sequence[Outcome], title: str) -> None:
    """Leave a picture of these outcomes, the first one drawn boldest. Raises InvalidInput where it can't be written."""
    from matplotlib import rc_context  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    unit_s, unit = _unit(trace.length_s)
    figure = Figure(figsize=INCHES, layout="constrained")
    above, middle, below = figure.subplots(3, 1, sharex=True, height_ratios=(2, 3, 3))
    figure.suptitle(title, fontsize=11)

    demand = concurrency(trace) / setting.slots
    at, mean, most = _thinned(demand)
    above.fill_between(at / unit_s, most, color=DEMAND, alpha=0.45, linewidth=0, label="most in a step")
    above.plot(at / unit_s, mean, color="#3e4c59", linewidth=1, label="mean")
    above.set_ylabel("demand\n(busy replicas)")
    above.legend(loc="upper right", ncols=2, frameon=False, fontsize=8)

    for index, (each, colour) in enumerate(zip(outcomes, COLOURS, strict=False)):
        first = index == 0
        style = {"color": colour, "linewidth": 2.2 if first else 1.1, "zorder": 3 if first else 2}
        at, _, most = _thinned(each.present.astype(np.float64))
        label = f"{each.policy}: {each.replica_hours:.2f} replica-hours"
        middle.step(at / unit_s, most, where="post", label=label, **style)
        told = [f"{each.share:.2%} in time"] if each.share is not None else []
        told += [f"{each.cold} to no replica"] if each.cold else []
        middles = (np.arange(len(each.waits_s)) + 0.5) * each.bin_s / unit_s
        shown = np.where(np.isinf(each.waits_s), np.nan, np.maximum(each.waits_s, LEAST_WAIT_S))
        below.plot(middles, shown, label=": ".join(filter(None, (each.policy, ", ".join(told)))), **style)
    middle.set_ylabel("replicas\n(also those that start)")
    below.set_yscale("log")
    below.yaxis.set_major_formatter(lambda value, _: f"≤ {value:g}" if value <= LEAST_WAIT_S else f"{value:g}")
    below.set_ylabel("wait\n(95th percentile, s)")
    below.set_xlabel(f"time since the first request ({unit})")
    limit_s = goal_s(setting.shape.goal)
    if limit_s is not None and setting.shape.goal.queue_ms is not None:
        below.axhline(limit_s, color="#3e4c59", linestyle="--", linewidth=1, label=f"goal: {limit_s:g} s")
    for axes in (middle, below):
        axes.legend(loc="upper left", bbox_to_anchor=(0.0, 1.16), ncols=3, frameon=False, fontsize=8)
    for axes in (above, middle, below):
        _plain(axes)
    above.set_xlim(0, max(trace.length_s, STEP_S) / unit_s)
    below.set_ylim(bottom=LEAST_WAIT_S * 0.8)
    kind, made = path.suffix.lower().removeprefix("."), io.BytesIO()
    # Text stays text, and the same figures make the same file.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "ctl"}):
        figure.savefig(made, format=kind, dpi=DOTS_PER_INCH, metadata={"Date": None} if kind == "svg" else None)
    try:
        path.write_bytes(made.getbuffer())
    except OSError as error:
        what = f"{path} can't be written: {error.strerror}"
        raise InvalidInput(what, field="--plot", remedy="name another file") from error


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    if axes.get_yscale() == "linear":
        axes.set_ylim(bottom=0)


def _unit(length_s: float) -> tuple[float, str]:
    """In which unit of time a picture of this length is labelled."""
    return (3600.0, "hours") if length_s > 3 * 3600 else (60.0, "minutes") if length_s > 300 else (1.0, "seconds")


def _thinned(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Begin, mean and greatest value of stretches of steps: more points than pixels only cost bytes."""
    width = max(1, len(values) // POINTS)
    begins = np.arange(0, len(values), width)
    lengths = np.diff(np.append(begins, len(values)))
    return begins * STEP_S, np.add.reduceat(values, begins) / lengths, np.maximum.reduceat(values, begins)
