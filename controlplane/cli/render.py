"""`ctl render`: the model directory that would be served, offline."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from controlplane.cli.arguments import FLEET, MENTION, Mention
from controlplane.cli.context import Context, pass_context
from controlplane.cli.fleets import fleet_for, none_looked_at, render_for
from controlplane.cli.output import note, output_option, show_one, size
from controlplane.core.errors import InvalidInput
from controlplane.core.models import ArtifactFile

if TYPE_CHECKING:
    from controlplane.registry import Registry
    from controlplane.render.rendered import RenderedModel


@click.command()
@click.argument("mention", metavar="MODEL@VERSION", type=MENTION)
@click.option("--fleet", type=FLEET, help="For this fleet's servers; without it, for those that the entry means.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the directory here, with its files.")
@output_option
@pass_context
def render(context: Context, *, mention: Mention, fleet: str | None, out: Path | None, output: str) -> None:
    """Show the exact config.pbtxt and directory that a fleet would serve.

    It needs no controller: what the fleet's servers can do stands in the registry.
    """
    from controlplane.cli.references import manifest_of, resolve

    registry = context.registry()
    reference = resolve(registry, mention)
    manifest = manifest_of(registry, reference)
    served = fleet_for(registry, manifest, fleet)
    if served is None:
        raise none_looked_at(fleet)
    rendered = render_for(registry, manifest, reference.version, served)
    data: dict[str, Any] = {
        "version": str(reference),
        "fleet": served.fleet,
        "config": rendered.config_text,
        "directories": list(rendered.directories),
        "files": {
            path: {"sha256": file.sha256, "size_bytes": file.size_bytes}
            if isinstance(file, ArtifactFile)
            else {"text": file}
            for path, file in rendered.files.items()
        },
        "notes": list(rendered.notes),
    }

    def text() -> None:
        click.echo(
            f"# {rendered.name}/config.pbtxt, for fleet {served.fleet} (Triton {served.capabilities.server_version})"
        )
        for line in rendered.notes:
            click.echo(f"# {line}")
        click.echo(rendered.config_text, nl=False)
        for directory in rendered.directories:
            click.echo(f"# {rendered.name}/{directory}/")
        for path, file in rendered.files.items():
            what = f"{size(file.size_bytes)}, SHA-256 {file.sha256}" if isinstance(file, ArtifactFile) else "generated"
            click.echo(f"# {rendered.name}/{path}  {what}")

    show_one(data, str(reference), output, text)
    if out is not None:
        _write(registry, rendered, out)
        note(f"written to {out / rendered.name}")


def _write(registry: Registry, rendered: RenderedModel, out: Path) -> None:
    folder = out / rendered.name
    if folder.exists():
        raise InvalidInput(f"{folder} is there already", field="--out", remedy="name a folder that has no such model")
    try:
        for directory in rendered.directories:
            (folder / directory).mkdir(parents=True)
        (folder / "config.pbtxt").write_text(rendered.config_text)
        for path, file in rendered.files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(file, ArtifactFile):
                _fetch(registry, file, target)
            else:
                target.write_text(file)
    except OSError as error:
        raise InvalidInput(
            f"{error.filename}: {error.strerror}", field="--out", remedy="name a writable folder"
        ) from error


def _fetch(registry: Registry, file: ArtifactFile, target: Path) -> None:
    digest = hashlib.sha256()
    with target.open("wb") as written:
        for chunk in registry.read_blob(file.sha256):
            digest.update(chunk)
            written.write(chunk)
    if digest.hexdigest() != file.sha256:
        target.unlink()
        raise InvalidInput(f"{file.path} is damaged in the registry", remedy="register the version again")
