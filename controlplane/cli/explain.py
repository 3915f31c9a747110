"""`ctl explain`: why things are as they are, in the plan's own sentences."""

from __future__ import annotations

import click

from controlplane.cli.arguments import MODEL
from controlplane.cli.context import Context, pass_context
from controlplane.cli.output import Column, Kind, output_option, show_one, show_rows

REASONS = Kind(
    columns=(Column("CODE", lambda row: row["code"], wide=True), Column("WHY", lambda row: row["text"])),
    empty="the controller has nothing to say about it",
)


@click.command()
@click.argument("name", type=MODEL)
@click.option("--fleet", is_flag=True, help="NAME is a fleet.")
@output_option
@pass_context
def explain(context: Context, name: str, fleet: bool, output: str) -> None:
    """Say why the model NAME (or the fleet) is served as it is, and what it waits for."""
    with context.reader() as reader:
        told = reader.get(f"/v1/{'fleets' if fleet else 'models'}/{name}/explain")

    def text() -> None:
        if told.get("problem"):
            click.echo(f"problem: {told['problem']}")
        reasons = told["reasons"]
        if output != "wide":  # what a rollout waits for is often what its version waits for, too
            reasons = list({each["text"]: each for each in reasons}.values())
        show_rows(reasons, REASONS, output)

    show_one(told, name, output, text)
