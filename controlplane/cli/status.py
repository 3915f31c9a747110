"""`ctl status`: where the parts of a system are and how they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from controlplane.cli.context import Context, pass_context
from controlplane.cli.output import output_option, show_one


@click.command()
@output_option
@pass_context
def status(context: Context, output: str) -> None:
    """Show where the registry, the controller and the gateway are, and how they are."""
    if context.on_kubernetes:
        _of_release(context, output)
        return
    from controlplane.cli.addresses import gateway_addresses
    from controlplane.local.metrics import prometheus_url, shown_url
    from controlplane.local.supervisor import owner
    from controlplane.local.system import load_system

    with context.reader() as reader:
        state = reader.get("/v1/status")
    addresses = gateway_addresses(context.home)
    system = load_system(context.home)
    prometheus = prometheus_url(system.metrics, context.home) if system is not None else None
    data = {
        "home": str(context.home.root),
        "registry": context.find_registry(),
        "grpc": addresses.grpc,
        "http": addresses.http,
        "prometheus": shown_url(prometheus) if prometheus else None,
        "supervisor": owner(context.home),
        **state,
    }

    def text() -> None:
        _print_state(data, state)
        if system is not None and prometheus is not None:
            whose = "started by `ctl up`" if system.metrics.program else "yours"
            for_what = "signals come from it" if system.metrics.source == "prometheus" else "for you to look at"
            click.echo(f"prometheus {data['prometheus']} ({whose}; {for_what})")
        _print_problems(state)
        if data["supervisor"] is None:
            click.echo("problem    `ctl up` is gone: whatever ends now is not started again (`ctl up` starts all anew)")

    show_one(data, str(context.home.root), output, text)


def _of_release(context: Context, output: str) -> None:
    """The same of a release on Kubernetes; the gateway's addresses are those inside the cluster."""
    from controlplane.cli.cluster.release import GRPC_PORT, HTTP_PORT

    release = context.release()
    with context.reader() as reader:
        state = reader.get("/v1/status")
    gateway = f"{release.name}-gateway.{release.api.namespace}"
    data = {
        "context": release.api.context,
        "namespace": release.api.namespace,
        "release": release.name,
        "leader": release.leader().pod,
        "registry": context.find_registry(),
        "grpc": f"{gateway}:{GRPC_PORT}",
        "http": f"{gateway}:{HTTP_PORT}",
        **state,
    }

    def text() -> None:
        click.echo(f"release    {release.name} in namespace {release.api.namespace}, context {release.api.context}")
        _print_state(data, state)
        click.echo(f"leader     pod {data['leader']}")
        _print_problems(state)

    show_one(data, release.name, output, text)


def _print_state(data: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    click.echo(f"registry   {data['registry']}")
    click.echo(f"gateway    gRPC {data['grpc']}, HTTP http://{data['http']}, ready: {state['gateways_ready']}")
    click.echo(f"controller epoch {state['epoch']}, up {state['up_s']:.0f} s")
    click.echo(f"replicas   {state['replicas_ready']} of {state['replicas_wanted']} ready")


def _print_problems(state: Mapping[str, Any]) -> None:
    for key, problem in state["problems"].items():
        click.echo(f"problem    {key}: {problem}")
