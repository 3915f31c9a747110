"""`ctl simulate`: what would have happened to a fleet under recorded traffic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from controlplane.cli.arguments import DURATION
from controlplane.cli.context import Context, pass_context
from controlplane.cli.output import is_animated, note, output_option, print_table, structured
from controlplane.core.errors import InvalidInput
from controlplane.core.models import FleetShape
from controlplane.core.snapshot import Settings

if TYPE_CHECKING:
    from controlplane.simulate.comparison import Comparison
    from controlplane.simulate.outcomes import Outcome
    from controlplane.simulate.replay import Setting
    from controlplane.simulate.traces import Trace

DEFAULT_FLEET = FleetShape(name="default", min_replicas=1, max_replicas=20)
"""What is simulated where no file defines a fleet."""
COLUMNS = {
    "POLICY": ("policy", False),
    "REPLICA-HOURS": ("replica_hours", False),
    "IN TIME": ("share", False),
    "P50 WAIT": ("wait_p50_s", True),
    "P95 WAIT": ("wait_p95_s", True),
    "P99 WAIT": ("wait_p99_s", False),
    "MAX WAIT": ("wait_max_s", True),
    "COLD": ("cold_requests", False),
    "STARTS": ("starts", False),
    "STOPS": ("stops", True),
    "MOST": ("most_replicas", False),
    "UNSERVED": ("unserved", True),
    "SET TO": ("set_to", False),
}
"""By heading: the field, and whether it is shown with ``-o wide`` only."""

WORTH_TELLING = 0.01
"""What another goal must save, as a part of the replica-hours, before it is named."""


@click.command()
@click.option(
    "--trace",
    "path",
    type=click.Path(path_type=Path, allow_dash=True),
    required=True,
    help="CSV, or JSON lines as Mooncake's; -: standard input.",
)
@click.option("-f", "--file", "file", type=click.Path(path_type=Path), help="The system's definition (YAML).")
@click.option("--fleet", "fleet", help="Which of its fleets.")
@click.option("--model", "model", help="Only the requests for this model.")
@click.option("--rate-multiplier", type=float, default=1.0, show_default=True, help="So many times the traffic.")
@click.option("--start-s", type=float, default=10.0, show_default=True, help="Seconds from a start to an answer.")
@click.option("--slots", type=int, default=4, show_default=True, help="Requests that a replica works on at once.")
@click.option("--work-s", type=float, default=0.1, show_default=True, help="Seconds a request, if the trace has none.")
@click.option("--prefill-per-s", type=float, default=8000.0, show_default=True, help="Tokens of prompts a second.")
@click.option("--decode-per-s", type=float, default=50.0, show_default=True, help="Tokens of answers a second.")
@click.option("--warm-up", "warm_up_s", type=DURATION, default="0s", show_default=True, help="Not counted at first.")
@click.option("--compare", "compared", is_flag=True, help="Compare with other policies; takes some 170 replays.")
@click.option("--plot", "plot", type=click.Path(path_type=Path), help="Leave a picture there (.png or .svg).")
@output_option
@pass_context
def simulate(
    context: Context,
    *,
    path: Path,
    file: Path | None,
    fleet: str | None,
    model: str | None,
    rate_multiplier: float,
    start_s: float,
    slots: int,
    work_s: float,
    prefill_per_s: float,
    decode_per_s: float,
    warm_up_s: float,
    compared: bool,
    plot: Path | None,
    output: str,
) -> None:
    """Replay recorded traffic: how many replicas there would have been, and who would have waited.

    The trace has a column `timestamp` (ISO 8601 or seconds), and may have `model` and `work` (seconds for which a
    request keeps one slot busy); the layouts of Azure's and Mooncake's public traces are known, too. Without -f: a
    fleet of 1 to 20 replicas. The decisions are those of the controller, made by the same code.
    """
    from controlplane.simulate.comparison import Bench, compare
    from controlplane.simulate.outcomes import first_counted
    from controlplane.simulate.pictures import check_plot, draw
    from controlplane.simulate.reading import MOST_WORK_S, Service, read_trace
    from controlplane.simulate.replay import Setting
    from controlplane.simulate.traces import multiplied, only

    for name, value in (("--prefill-per-s", prefill_per_s), ("--decode-per-s", decode_per_s)):
        if not 0 < value < float("inf"):
            raise InvalidInput(f"{value:g} can't be", field=name, remedy="give a number above 0")
    if not 0 < work_s <= MOST_WORK_S:
        remedy = f"give a number above 0, at most {MOST_WORK_S:g}, a day"
        raise InvalidInput(f"{work_s:g} can't be", field="--work-s", remedy=remedy)
    if plot is not None:
        check_plot(plot)
    setting = Setting(shape=_shape(context, file, fleet), slots=slots, start_s=start_s)
    if compared and setting.shape.goal.in_flight is not None:
        raise InvalidInput(
            "a goal of requests in flight has no requests in time to compare policies at",
            field="--compare",
            remedy="give the fleet queue_ms or latency_ms in the file of -f",
        )
    with _shown() as told:
        service = Service(work_s=work_s, prefill_per_s=prefill_per_s, decode_per_s=decode_per_s)
        trace = read_trace(
            Path("/dev/stdin") if path == Path("-") else path, service, lambda count: told(f"read: {count} requests")
        )
        trace = multiplied(only(trace, model) if model is not None else trace, rate_multiplier)
        first_counted(trace, warm_up_s)
        told("")
        _describe(trace, setting)
        bench = Bench(trace, setting, warm_up_s, lambda text: told(f"replaying {text}"))
        comparison = compare(bench) if compared else None
        if comparison is not None:
            outcomes = [comparison.ours, *(each for each in comparison.peers.values() if each is not None)]
        else:
            outcomes = [bench.ours()]
        told("")
    _show(trace, setting, outcomes, comparison, output)
    if plot is not None:
        draw(plot, trace, setting, outcomes, f"{trace.name}: {len(trace)} requests, goal: {setting.shape.goal}")
        note(f"drawn: {plot}")


def _shape(context: Context, file: Path | None, name: str | None) -> FleetShape:
    """The fleet to simulate."""
    from controlplane.local.system import read_system

    if file is None:
        if name is not None:
            raise InvalidInput(f"no file defines a fleet {name!r}", field="--fleet", remedy="name the file with -f")
        return DEFAULT_FLEET
    system = read_system(file, context.home)
    shapes = [_within(each.shape(), system.controller.settings()) for each in system.fleets]
    known = ", ".join(each.name for each in shapes)
    if name is not None:
        for each in shapes:
            if each.name == name:
                return each
        raise InvalidInput(f"{file} defines no fleet {name!r}", field="--fleet", remedy=f"one of {known}")
    chosen = [each for each in shapes if each.default or len(shapes) == 1]
    if not chosen:
        raise InvalidInput(f"{file} defines several fleets", field="--fleet", remedy=f"name one of {known}")
    return chosen[0]


def _within(shape: FleetShape, budget: Settings) -> FleetShape:
    """The fleet, if it has the budget of all fleets to itself."""
    left = [budget.max_replicas] if budget.max_replicas is not None else []
    left += [budget.max_gpus // shape.gpus] if budget.max_gpus is not None and shape.gpus else []
    if not left:
        return shape
    most = min(left)
    schedule = tuple(
        replace(each, max_replicas=min(each.max_replicas, most)) if each.max_replicas is not None else each
        for each in shape.schedule
    )
    return replace(shape, max_replicas=min(shape.max_replicas, most), schedule=schedule)


def _describe(trace: Trace, setting: Setting) -> None:
    """What is simulated, and what is odd about the trace."""
    from controlplane.simulate.outcomes import share_out_of_reach

    shape = setting.shape
    models = f" for {len(trace.models)} models" if len(trace.models) > 1 else ""
    note(f"trace {trace.name}: {len(trace)} requests{models} in {trace.length_s:.0f} s")
    for each in trace.notes:
        note(f"  {each}")
    if shape.schedule and not trace.origin:
        note("  the trace says no date: to the fleet's schedule it begins on Thursday, 1970-01-01, at 0:00 UTC")
    note(
        f"fleet {shape.name}: {shape.min_replicas} to {shape.max_replicas} replicas of {setting.slots} slots, "
        f"{setting.start_s:g} s to start; goal: {shape.goal}"
    )
    if out_of_reach := share_out_of_reach(trace, shape.goal):
        note(f"  no size meets that for {out_of_reach:.3%} of the requests: their work alone takes longer")


def _show(trace: Trace, setting: Setting, outcomes: list[Outcome], comparison: Comparison | None, output: str) -> None:
    rows = [each.row() for each in outcomes]
    if output in ("json", "yaml"):
        click.echo(structured(_data(trace, setting, rows, comparison), output))
    elif output == "name":
        for row in rows:
            click.echo(row["policy"])
    else:
        shown = {heading: field for heading, (field, wide) in COLUMNS.items() if output == "wide" or not wide}
        print_table(list(shown), [[_cell(field, row[field]) for field in shown.values()] for row in rows])
    ours = comparison.ours if comparison is not None else outcomes[0]
    if ours.share is not None and ours.share < setting.shape.goal.share:
        note(f"the goal is missed: {ours.share:.3%} of the requests were in time, not {setting.shape.goal.share:.3%}")
    if comparison is None:
        return
    note(f"each peer is set to the cheapest that brings as many requests in time as this autoscaler: {ours.share:.3%}")
    for name, each in comparison.peers.items():
        if each is None:
            note(f"{name} reaches that with no setting tried; its best is {comparison.best[name].share:.3%}")
    if comparison.closed is not None:
        note(f"of the replica-hours between the HPA and the oracle, {_saved(comparison.closed)}")
    for text in _with_hindsight(comparison, setting.shape.goal.share):
        note(text)


def _with_hindsight(comparison: Comparison, share: float) -> Iterator[str]:
    """What another goal in the file would have brought, by the fleet's own; and each policy's cheapest setting."""
    ours, best = comparison.ours, comparison.with_hindsight
    if best is None:
        others = any(each is not None for each in comparison.at_goal.values())
        yield f"no other goal that was tried would have met this one{'' if others else ', nor does any other policy'}"
    elif (ours.share or 0.0) < share or best.replica_hours <= (1 - WORTH_TELLING) * ours.replica_hours:
        brought = f"{best.share:.3%} within this goal for {best.replica_hours:.2f} replica-hours"
        yield f"with hindsight: had the file asked for {best.tuned}, it would have been {brought}"
    else:
        yield "with hindsight: no other goal that was tried would have met this one for less"
    if comparison.closed_at_goal is not None:
        part = _saved(comparison.closed_at_goal)
        yield f"with all policies, this one too, at the cheapest setting tried that meets the goal, {part}"


def _saved(closed: float) -> str:
    return (
        f"{closed:.0%} are saved"
        if closed >= 0
        else f"none are saved: it takes {-closed:.0%} of them more than the HPA"
    )


def _data(
    trace: Trace, setting: Setting, rows: list[Mapping[str, Any]], comparison: Comparison | None
) -> dict[str, Any]:
    shape = setting.shape
    return {
        "trace": {
            "name": trace.name,
            "requests": len(trace),
            "length_s": round(trace.length_s, 3),
            "models": len(trace.models),
            "notes": list(trace.notes),
        },
        "fleet": {
            "name": shape.name,
            "min_replicas": shape.min_replicas,
            "max_replicas": shape.max_replicas,
            "slots": setting.slots,
            "start_s": setting.start_s,
            "goal": str(shape.goal),
            "goal_share": shape.goal.share,
        },
        "outcomes": rows,
        **({} if comparison is None else _compared(comparison)),
    }


def _compared(comparison: Comparison) -> Mapping[str, Any]:
    """What a comparison says beside the outcomes; `not_reached`: the best share of each peer that is not among them;
    `at_goal`: of each policy the cheapest that reaches the goal, null where none does."""
    missed = [name for name, each in comparison.peers.items() if each is None]
    return {
        "gap_closed": comparison.closed,
        "gap_closed_at_goal": comparison.closed_at_goal,
        "at_goal": {name: None if each is None else each.row() for name, each in comparison.at_goal.items()},
        "not_reached": {name: comparison.best[name].share for name in missed},
    }


def _cell(field: str, value: Any) -> object:
    if value is None:
        return "never" if field.startswith("wait") else None
    if field == "share":
        return f"{value:.3%}"
    if field == "replica_hours":
        return f"{value:.2f}"
    return f"{value:.3g} s" if field.startswith("wait") else value


@contextmanager
def _shown() -> Iterator[Callable[[str], None]]:
    """What long work tells how far it is: one line that changes, on a terminal only."""
    if not is_animated():
        yield lambda text: None
        return

    def show(text: str) -> None:
        click.echo(f"\r\x1b[K{text}", err=True, nl=False)

    try:
        yield show
    finally:
        show("")
