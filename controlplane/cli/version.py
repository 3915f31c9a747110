"""`ctl version`."""

from __future__ import annotations

import platform

import click

import controlplane
from controlplane.cli.output import output_option, show_one


@click.command()
@output_option
def version(output: str) -> None:
    """Print the version of this program and of Python."""
    number, python = controlplane.__version__, platform.python_version()
    data = {"version": number, "python": python}
    show_one(data, number, output, lambda: click.echo(f"ctl {number} (Python {python})"))
