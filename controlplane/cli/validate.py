"""`ctl validate`: an entry is checked before anybody registers it."""

from __future__ import annotations

from pathlib import Path

import click

from controlplane.cli.context import Context, pass_context
from controlplane.cli.fleets import fleet_for, render_for
from controlplane.cli.output import output_option, show_one, structured
from controlplane.core.entry import is_name
from controlplane.core.models import Manifest


@click.command()
@click.argument("file", metavar="ENTRY", type=click.Path(path_type=Path))
@click.argument("path", metavar="[PATH]", type=click.Path(path_type=Path), required=False)
@click.option("--name", help="The model's name, if the entry does not say it.")
@click.option("--fleet", help="Check for this fleet's servers.")
@output_option
@pass_context
def validate(
    context: Context, *, file: Path, path: Path | None, name: str | None, fleet: str | None, output: str
) -> None:
    """Check an entry file, with the model's file or folder PATH if it is there; print the whole entry.

    A folder stands for the `model.yaml` in it. Where the registry knows the fleet's servers, the entry is rendered for
    them and checked like a registration.
    """
    from controlplane.entry.build import ENTRY_FILE, build
    from controlplane.entry.document import read_document
    from controlplane.entry.parse import to_data
    from controlplane.registry.artifact import hash_files

    if file.is_dir():
        file, path = file / ENTRY_FILE, path if path is not None else file
    if name is None and file.is_file() and "name" not in read_document(file.read_bytes(), file.name).data:
        stem = file.resolve().parent.name if file.name == ENTRY_FILE else file.stem
        name = stem if is_name(stem) else None
    built = build(name, path, file)
    manifest = Manifest(entry=built.entry, files=hash_files(built.files).files)
    facts = list(built.facts)
    # Without its files an entry can't be rendered; an ensemble has none.
    if path is not None or built.entry.backend == "ensemble":
        registry = context.registry()
        served = fleet_for(registry, manifest, fleet)
        if served is not None:
            facts += render_for(registry, manifest, 1, served).notes
            facts.append(f"checked for fleet {served.fleet}")
    entry = to_data(built.entry)

    def text() -> None:
        click.echo(structured(entry, "yaml"))
        for fact in facts:
            click.echo(f"# {fact}")
        click.echo("valid", err=True)

    show_one({"valid": True, "entry": entry, "facts": facts}, built.entry.name, output, text)
