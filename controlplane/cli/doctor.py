"""`ctl doctor`: checks an installation, and says what to do."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

import click

from controlplane.cli.context import Context, pass_context
from controlplane.cli.output import Column, Kind, note, output_option, show_rows

WRONG = 1
COLORS = {"ok": "green", "warning": "yellow", "problem": "red", "unchecked": "cyan"}
FINDINGS = Kind(
    columns=(
        Column("CHECK", lambda row: row["check"]),
        Column("STATE", lambda row: row["state"]),
        Column("WHAT", lambda row: row["what"]),
        Column("WHAT TO DO", lambda row: row["remedy"]),
    ),
    name=lambda row: f"{row['check']}: {row['state']}",
    empty="nothing to check",
)


@click.command()
@click.option("--write", is_flag=True, help="Try conditional writes too: an object below doctor/, removed afterwards.")
@output_option
@click.pass_context
@pass_context
def doctor(context: Context, ctx: click.Context, *, write: bool, output: str) -> None:
    """Check an installation: of this home, or with --context a release on Kubernetes.

    Nothing is changed, but for --write. Exit status 1 when there is a problem; a warning, or what can't be looked at
    from here, is none.
    """
    from controlplane.cli.importing import importing

    with importing():
        from controlplane.cli.checks.home import HomeCheck
        from controlplane.logs import configure

    import logging

    configure(level=logging.CRITICAL)  # what is logged is told as a finding
    if context.on_kubernetes:
        release = context.release()
        with importing():
            from controlplane.cli.checks.release import ReleaseCheck

        findings = ReleaseCheck(release, registry=context.registry_url, write=write).findings()
    else:
        findings = HomeCheck(context, write=write).findings()
    rows = []
    for each in findings:
        rows.append(asdict(each))
        if output == "table":  # each at once: some take seconds
            state = click.style(each.state.ljust(9), fg=COLORS[each.state])
            click.echo(f"{state}  {each.check}: {each.what}")
            if each.remedy and each.state != "ok":
                click.echo(f"           → {each.remedy}")
    if output != "table":
        show_rows(rows, FINDINGS, output)
    counts = Counter(row["state"] for row in rows)
    note(", ".join(f"{counts[state]} {state}" for state in COLORS if counts[state]))
    if counts["problem"]:
        ctx.exit(WRONG)
