"""`ctl validate`: an entry is checked before anybody registers it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from controlplane.cli.arguments import FLEET
from controlplane.cli.context import Context, pass_context
from controlplane.cli.fleets import check
from controlplane.cli.importing import importing
from controlplane.cli.output import note, output_option, show_one, structured
from controlplane.core.entry import is_name
from controlplane.core.errors import InvalidInput
from controlplane.core.models import Manifest

if TYPE_CHECKING:
    from controlplane.entry.build import Built


@click.command()
@click.argument("file", metavar="ENTRY", type=click.Path(path_type=Path))
@click.argument("path", metavar="[PATH]", type=click.Path(path_type=Path), required=False)
@click.option("--name", help="The model's name, if the entry does not say it.")
@click.option("--fleet", type=FLEET, help="Check for this fleet's servers.")
@output_option
@pass_context
def validate(
    context: Context, *, file: Path, path: Path | None, name: str | None, fleet: str | None, output: str
) -> None:
    """Check an entry file, with the model's file or folder PATH; print the whole entry.

    A folder stands for the `model.yaml` in it. Without PATH, model files are looked for beside the entry file; where
    there are none, what can be checked without them is. Where the registry knows the fleet's servers, the entry is
    rendered for them and checked like a registration.
    """
    with importing():
        from controlplane.entry.build import ENTRY_FILE, beside, build, look
        from controlplane.entry.document import read_document
        from controlplane.entry.parse import to_data

    if file.is_dir():
        file, path = file / ENTRY_FILE, path if path is not None else file
    if not file.is_file():
        raise InvalidInput(f"there is no entry file {file}", remedy=f"name one, or a folder with a {ENTRY_FILE}")
    document = read_document(file.read_bytes(), file.name).data
    if name is None and "name" not in document:
        stem = file.resolve().parent.name if file.name == ENTRY_FILE else file.stem
        name = stem if is_name(stem) else None
    if path is None and not document.get("ensemble"):
        path = beside(file)
        if path is None:
            looked = look(name, file)
            entry = to_data(looked.entry) if looked.entry is not None else dict(looked.stated)
            _show(str(looked.stated["name"]), entry, list(looked.unchecked), output, "valid as far as that can be told")
            return
        note(f"checked with the files in {path.resolve()}")
    built = build(name, path, file)
    _show(built.entry.name, to_data(built.entry), [*built.facts, *_checked(context, built, fleet)], output, "valid")


def _checked(context: Context, built: Built, fleet: str | None) -> list[str]:
    """What checking it like a registration says."""
    from controlplane.cli.pins import pin
    from controlplane.entry.build import pin_steps
    from controlplane.registry.artifact import hash_files

    registry = context.registry() if context.has_registry or fleet is not None else None
    if registry is not None:
        entry, pins = pin(registry, built.entry)
    else:
        entry, pins = pin_steps(built.entry, lambda _: 1), []  # there are none to look at
    manifest = Manifest(entry=entry, files=hash_files(built.files).files)
    return [*pins, *check(registry, manifest, 1, fleet)]


def _show(name: str, entry: dict[str, Any], facts: list[str], output: str, verdict: str) -> None:
    def text() -> None:
        click.echo(structured(entry, "yaml"))
        for fact in facts:
            click.echo(f"# {fact}")
        note(verdict)

    show_one({"valid": True, "entry": entry, "facts": facts}, name, output, text)
