"""`ctl version`."""

from __future__ import annotations

import platform

import click

import controlplane


@click.command()
def version() -> None:
    """Print the version of this program and of Python."""
    click.echo(f"ctl {controlplane.__version__} (Python {platform.python_version()})")
