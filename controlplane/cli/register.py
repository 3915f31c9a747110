"""`ctl register`: from a model file to a version."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from controlplane.cli.arguments import MODEL, dry_run_option, reason_option
from controlplane.cli.context import Context, pass_context
from controlplane.cli.fleets import check
from controlplane.cli.importing import importing
from controlplane.cli.output import changed, output_option, show_one, size
from controlplane.core.errors import InvalidInput, NotFound
from controlplane.core.models import Manifest

if TYPE_CHECKING:
    from controlplane.registry import Registry


@click.command()
@click.argument("name", type=MODEL)
@click.argument("path", type=click.Path(path_type=Path), required=False)
@click.option("--entry", "entry_file", type=click.Path(path_type=Path), help="The entry file (YAML or JSON).")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label; may be given several times.")
@reason_option
@dry_run_option
@output_option
@pass_context
def register(
    context: Context,
    *,
    name: str,
    path: Path | None,
    entry_file: Path | None,
    labels: tuple[str, ...],
    reason: str,
    dry_run: bool,
    output: str,
) -> None:
    """Make a version of the model NAME from the file or folder PATH.

    What the entry file does not say is read from the model's file. The same bytes and entry are the same version.
    """
    with importing():
        import controlplane.render.render  # noqa: F401 - what `check` needs, before anything is begun
        from controlplane.cli.pins import pin
        from controlplane.cli.progress import shown
        from controlplane.entry.build import build

    built = build(name, path, entry_file)
    registry = context.registry()
    entry, pins = pin(registry, built.entry)
    checked: list[str] = []

    def look(manifest: Manifest) -> None:
        checked.extend(check(registry, manifest, _next_version(registry, name)))

    with shown() as progress:
        made = registry.register(
            entry,
            built.files,
            actor=context.actor,
            reason=reason,
            labels=_labels(labels),
            dry_run=dry_run,
            progress=progress,
            check=look,
        )
    facts = [*built.facts, *pins, *checked]
    data = changed(
        {
            "name": name,
            "version": made.version,
            "digest": made.digest,
            "size_bytes": made.manifest.size_bytes,
            "facts": facts,
        },
        now={"created": False, "uploaded_bytes": 0},
        then={"created": made.created, "uploaded_bytes": made.uploaded_bytes},
        dry_run=dry_run,
    )
    reference = f"{name}@{made.version}"

    def text() -> None:
        did = "would be made" if dry_run else "made"
        state = did if made.created else "is there already: same bytes, same entry"
        click.echo(f"{reference} {state}")
        click.echo(f"  digest   {made.digest}")
        click.echo(f"  files    {len(made.manifest.files)}, {size(made.manifest.size_bytes)}")
        click.echo(f"  {'to send ' if dry_run else 'uploaded'} {size(made.uploaded_bytes)}")
        for fact in facts:
            click.echo(f"  - {fact}")

    show_one(data, reference, output, text)


def _next_version(registry: Registry, name: str) -> int:
    try:
        return 1 + max((each.number for each in registry.model(name).versions), default=0)
    except NotFound:
        return 1


def _labels(texts: tuple[str, ...]) -> dict[str, str]:
    labels = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not key or not separator:
            raise InvalidInput(f"{text!r} is no label", field="--label", remedy="write it as KEY=VALUE")
        labels[key] = value
    return labels
