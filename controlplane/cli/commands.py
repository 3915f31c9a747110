"""The `ctl` command: global options, subcommands that are imported when they are used, errors to exit statuses."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

import controlplane
from controlplane.cli.context import (
    CONTEXT_VARIABLE,
    DEFAULT_HOME,
    HOME_VARIABLE,
    NAMESPACE_VARIABLE,
    REGISTRY_VARIABLE,
    RELEASE_VARIABLE,
    Context,
    Target,
)
from controlplane.core.errors import STATUS, ControlPlaneError, InvalidEntry, InvalidInput
from controlplane.local.home import Home

INTERRUPTED = 130

COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("controlplane.cli.up", "Start a system on this machine."),
    "status": ("controlplane.cli.status", "Show where the parts are and how they are."),
    "reload": ("controlplane.cli.reload", "Have the running system take other settings over."),
    "down": ("controlplane.cli.down", "End the system of this home."),
    "register": ("controlplane.cli.register", "Make a version of a model."),
    "promote": ("controlplane.cli.promote", "Make a version the one that is served."),
    "rollback": ("controlplane.cli.rollback", "Go back to what was stable before."),
    "retire": ("controlplane.cli.retire", "Serve a model no more."),
    "alias": ("controlplane.cli.alias", "Point other names at versions."),
    "delete": ("controlplane.cli.delete", "Delete a version."),
    "get": ("controlplane.cli.get", "List models, versions, replicas, fleets, routes."),
    "describe": ("controlplane.cli.describe", "Show all about one of them."),
    "explain": ("controlplane.cli.explain", "Say why a model, or a fleet, is as it is."),
    "top": ("controlplane.cli.top", "Show live how fleets and models fare."),
    "scale": ("controlplane.cli.scale", "Set a fleet's size by hand."),
    "history": ("controlplane.cli.history", "Who changed a model, when and why."),
    "diff": ("controlplane.cli.diff", "Compare two versions."),
    "render": ("controlplane.cli.render", "Show the model directory that would be served."),
    "validate": ("controlplane.cli.validate", "Check an entry file."),
    "infer": ("controlplane.cli.infer", "Send a request, and show the code for it."),
    "unquarantine": ("controlplane.cli.unquarantine", "Let a version run again where it took a server down."),
    "simulate": ("controlplane.cli.simulate", "Replay recorded traffic: replicas and waits that would have been."),
    "doctor": ("controlplane.cli.doctor", "Check an installation, and say what to do."),
    "gc": ("controlplane.cli.gc", "Remove files that no version needs."),
    "completion": ("controlplane.cli.completion", "Print the shell's completion script."),
    "version": ("controlplane.cli.version", "Print the version of this program."),
}
"""By name: the module that holds a command of that name, and its line in the help."""


class LazyGroup(click.Group):
    """Imports a subcommand when it is used, so that `ctl --help` costs nothing."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every subcommand, in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a subcommand."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(COMMANDS[cmd_name][0]), cmd_name)
        return accept_global_options(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the subcommand that is asked for; where there is none, name those that are spelled alike."""
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:
            raise click.NoSuchCommand(error.command_name, possibilities=COMMANDS, ctx=ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _set_registry(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        context = ctx.find_object(Context)
        if context is not None:
            context.registry_url = value


def _set_home(ctx: click.Context, _: click.Parameter, value: Path | None) -> None:
    context = ctx.find_object(Context)
    if value is not None and context is not None:
        context.home = Home(value)
        context.home_typed = True


TARGET: dict[str, click.ParamType[Any]] = {
    "--context": click.STRING,
    "--namespace": click.STRING,
    "--release": click.STRING,
    "--kubeconfig": click.Path(path_type=Path),
}


def _set_target(ctx: click.Context, param: click.Parameter, value: str | Path | None) -> None:
    context = ctx.find_object(Context)
    if value is not None and context is not None:
        option = param.opts[0]
        setattr(context.target, option.removeprefix("--"), value)
        context.target.typed.add(option)


def accept_global_options(command: click.Command) -> click.Command:
    """Let the global options be given after the subcommand as well."""
    taken = {option for param in command.params for option in param.opts}
    if isinstance(command, click.Group):
        for each in command.commands.values():
            accept_global_options(each)
        return command
    if "--home" not in taken:
        command.params.append(
            click.Option(
                ["--home", "_home"],
                type=click.Path(path_type=Path),
                callback=_set_home,
                expose_value=False,
                hidden=True,
            )
        )
    if "--registry" not in taken:
        command.params.append(
            click.Option(["--registry", "_registry"], callback=_set_registry, expose_value=False, hidden=True)
        )
    for option, kind in TARGET.items():
        if option not in taken:
            name = f"_{option.removeprefix('--')}"
            command.params.append(
                click.Option([option, name], type=kind, callback=_set_target, expose_value=False, hidden=True)
            )
    return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--home",
    type=click.Path(path_type=Path),
    default=DEFAULT_HOME,
    show_default=True,
    envvar=HOME_VARIABLE,
    show_envvar=True,
    help="The folder of the local system.",
)
@click.option(
    "--registry",
    "registry_url",
    envvar=REGISTRY_VARIABLE,
    show_envvar=True,
    help="Where models are kept: s3://bucket/prefix or a folder. Without it: where the home, or the release, says.",
)
@click.option(
    "--context",
    "context",
    envvar=CONTEXT_VARIABLE,
    show_envvar=True,
    help="A context of the kubeconfig: the system is a release on that cluster, not the home's.",
)
@click.option(
    "--namespace",
    envvar=NAMESPACE_VARIABLE,
    show_envvar=True,
    help="The release's namespace. Without it: the context's.",
)
@click.option(
    "--release",
    envvar=RELEASE_VARIABLE,
    show_envvar=True,
    help="The release. Without it: the only one in the namespace.",
)
@click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path),
    help="The kubeconfig. Without it: KUBECONFIG, or ~/.kube/config.",
)
@click.version_option(controlplane.__version__, message="ctl %(version)s", help="Show the version and exit.")
@click.pass_context
def ctl(
    ctx: click.Context,
    *,
    home: Path,
    registry_url: str | None,
    context: str | None,
    namespace: str | None,
    release: str | None,
    kubeconfig: Path | None,
) -> None:
    """Control plane for fleets of Triton servers.

    Changes go to the registry; what runs is told by the controller of the home, or of a release on Kubernetes.

    Data goes to standard output, all else to standard error. Exit status: 0 done, 1 failed or different, 2 usage, 3
    waited in vain, 4 no access, 5 conflict.
    """

    def is_typed(option: str) -> bool:
        return ctx.get_parameter_source(option.removeprefix("--")) is ParameterSource.COMMANDLINE

    typed = set(filter(is_typed, TARGET))
    target = Target(context=context, namespace=namespace, release=release, kubeconfig=kubeconfig, typed=typed)
    ctx.obj = Context(Home(home), registry_url, target, home_typed=is_typed("--home"))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run `ctl`; returns the exit status."""
    try:
        status = ctl.main(args=arguments, prog_name="ctl", standalone_mode=False)
    except ControlPlaneError as error:
        report(error)
        return STATUS[error.code].exit
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        report(_usage(error))
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    return status if isinstance(status, int) else 0


def _usage(error: click.ClickException) -> InvalidInput:
    """What click refuses, in our own form."""
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    remedy = f"`{ctx.command_path} --help` shows what can be given" if ctx is not None else None
    return InvalidInput(error.format_message().removesuffix("."), remedy=remedy)


def report(error: ControlPlaneError) -> None:
    """Say on standard error what happened, where, and what to do."""
    label = click.style(f"error[{error.code}]", fg="red", bold=True)
    if isinstance(error, InvalidEntry):
        click.echo(f"{label}: {error.subject}", err=True)
        for problem in error.problems:
            click.echo(f"  {problem.field + ': ' if problem.field else ''}{problem.what}", err=True)
            if problem.remedy:
                click.echo(f"    → {problem.remedy}", err=True)
        return
    click.echo(f"{label}: {error.field + ': ' if error.field else ''}{error.what}", err=True)
    if error.remedy:
        click.echo(f"  → {error.remedy}", err=True)
