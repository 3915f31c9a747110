"""`ctl explain`: why things are as they are, in the plan's own sentences."""

from __future__ import annotations

import click

from controlplane.cli.arguments import EXPLAINED
from controlplane.cli.context import Context, pass_context
from controlplane.cli.output import Column, Kind, output_option, show_one, show_rows
from controlplane.core.errors import InvalidInput

REASONS = Kind(
    columns=(Column("CODE", lambda row: row["code"], wide=True), Column("WHY", lambda row: row["text"])),
    empty="the controller has nothing to say about it",
)


@click.command()
@click.argument("what", metavar="[model|fleet] NAME", type=EXPLAINED, nargs=-1, required=True)
@output_option
@pass_context
def explain(context: Context, what: tuple[str, ...], output: str) -> None:
    """Say why a model is served as it is, or why a fleet has the replicas that it has."""
    if what == ("fleet",):
        raise click.UsageError(
            "name the fleet, too: `ctl explain fleet NAME` (a model of that name: `ctl explain model fleet`)"
        )
    kind, name = what if len(what) == 2 else ("model", what[0])
    if kind not in ("model", "fleet") or len(what) > 2:
        raise click.UsageError("name one model, or `fleet` and a fleet")
    if kind == "model" and "@" in name:
        model = name.partition("@")[0]
        raise InvalidInput(f"{name} is a version", field="NAME", remedy=f"`ctl explain {model}` tells of all of them")
    with context.reader() as reader:
        told = reader.get(f"/v1/{kind}s/{name}/explain")

    def text() -> None:
        if told.get("problem"):
            click.echo(f"problem: {told['problem']}")
        reasons = [reason for kind in ("reasons", "memory", "capacity", "batching") for reason in told.get(kind, ())]
        if output != "wide":  # what a rollout waits for is often what its version waits for, too
            reasons = list({each["text"]: each for each in reasons}.values())
        show_rows(reasons, REASONS, output)

    show_one(told, name, output, text)
