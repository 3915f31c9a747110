"""`helm install` and `helm test` as the README writes them, done by Helm's own library."""

from __future__ import annotations

import re
from pathlib import Path

import click
import yaml
from helm_python import Config

SECONDS = {"s": 1, "m": 60, "h": 3600}


def seconds(duration: str) -> int:
    """Of a duration as Go writes it, such as 20m."""
    return sum(int(number) * SECONDS[unit] for number, unit in re.findall(r"(\d+)([smh])", duration))


@click.group()
@click.option("-n", "--namespace", required=True)
@click.pass_context
def main(context: click.Context, namespace: str) -> None:
    context.obj = namespace


@main.command()
@click.argument("name")
@click.argument("chart")
@click.option("-f", "--values", type=click.Path(path_type=Path), required=True)
@click.option("--wait", is_flag=True)
@click.option("--timeout", default="5m")
@click.pass_obj
def install(namespace: str, name: str, chart: str, values: Path, *, wait: bool, timeout: str) -> None:
    with Config(namespace=namespace) as helm:
        made = helm.install(
            chart,
            name,
            yaml.safe_load(values.read_text()),
            namespace=namespace,
            wait="watcher" if wait else None,
            timeout=seconds(timeout),
        )
    click.echo(made["notes"])


@main.command()
@click.argument("name")
@click.option("--timeout", default="5m")
@click.pass_obj
def test(namespace: str, name: str, timeout: str) -> None:
    with Config(namespace=namespace) as helm:
        helm.test(name, timeout=seconds(timeout))


if __name__ == "__main__":
    main()
