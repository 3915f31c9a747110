"""`ctl diff`: what two versions differ in."""

from __future__ import annotations

import difflib
from typing import Any

import click

from controlplane.cli.arguments import MENTION, Mention
from controlplane.cli.context import Context, pass_context
from controlplane.cli.output import output_option, show_one, size, structured

DIFFERENT = 1


@click.command()
@click.argument("first", metavar="MODEL@VERSION", type=MENTION)
@click.argument("second", metavar="MODEL@VERSION", type=MENTION)
@output_option
@pass_context
@click.pass_context
def diff(ctx: click.Context, context: Context, first: Mention, second: Mention, output: str) -> None:
    """Compare two versions: their entries and their files. Exit status 1 when they differ."""
    from controlplane.cli.references import manifest_of, resolve
    from controlplane.entry.parse import to_data

    registry = context.registry()
    one, other = resolve(registry, first), resolve(registry, second)
    before, after = manifest_of(registry, one), manifest_of(registry, other)
    lines = list(
        difflib.unified_diff(
            structured(to_data(before.entry), "yaml").splitlines(),
            structured(to_data(after.entry), "yaml").splitlines(),
            f"{one} entry",
            f"{other} entry",
            lineterm="",
        )
    )
    old, new = ({file.path: file for file in each.files} for each in (before, after))
    files: list[dict[str, Any]] = []
    for path in sorted(old.keys() | new.keys()):
        left, right = old.get(path), new.get(path)
        if left is None or right is None or left.sha256 != right.sha256:
            files.append(
                {
                    "path": path,
                    "change": "added" if left is None else "removed" if right is None else "changed",
                    "before": left and {"sha256": left.sha256, "size_bytes": left.size_bytes},
                    "after": right and {"sha256": right.sha256, "size_bytes": right.size_bytes},
                }
            )

    def text() -> None:
        for line in lines:
            color = {"+": "green", "-": "red"}.get(line[:1])
            click.echo(click.style(line, fg=color))
        for file in files:
            sizes = " → ".join(
                (size(side["size_bytes"]) or "") if side else "-" for side in (file["before"], file["after"])
            )
            click.echo(f"{file['change']} {file['path']} ({sizes})")
        if not lines and not files:
            click.echo("no difference")

    show_one({"one": str(one), "other": str(other), "entry": lines, "files": files}, f"{one} {other}", output, text)
    if lines or files:
        ctx.exit(DIFFERENT)
