"""What a shell offers while a name is typed. Whatever goes wrong, it offers nothing and says nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps

import click
from click.core import ParameterSource

from controlplane.cli.context import DEFAULT_HOME, Context, Target
from controlplane.core.models import Model
from controlplane.local.home import Home

Suggest = Callable[[click.Context, str], list[str]]
"""From what has been typed so far, and the beginning of the word that is being typed, to whole words."""


def _silent(suggest: Callable[[click.Context, str], Iterable[str]]) -> Suggest:
    @wraps(suggest)
    def silently(ctx: click.Context, incomplete: str) -> list[str]:
        import stamina

        active = stamina.is_active()
        stamina.set_active(False)  # nobody waits at a prompt for a store that is away, and each retry would be told
        try:
            return [each for each in suggest(ctx, incomplete) if each.startswith(incomplete)]
        except Exception:  # noqa: BLE001 - a traceback would tear the line that is being typed
            return []
        finally:
            stamina.set_active(active)

    return silently


@_silent
def models(ctx: click.Context, _: str) -> Iterable[str]:
    """The models' names."""
    from controlplane.registry.layout import MODELS

    return _names(ctx, MODELS)


@_silent
def fleets(ctx: click.Context, _: str) -> Iterable[str]:
    """The fleets' names, which the registry knows also without a controller."""
    from controlplane.registry.layout import FLEETS

    return _names(ctx, FLEETS)


@_silent
def replicas(ctx: click.Context, _: str) -> Iterable[str]:
    """The replicas' names, from the controller."""
    with _context(ctx).reader() as reader:
        return [row["name"] for row in reader.get("/v1/replicas")]


@_silent
def mentions(ctx: click.Context, _: str) -> Iterable[str]:
    """``MODEL@VERSION`` and ``MODEL@ALIAS``."""
    found = _context(ctx).registry().models()
    return [f"{model.name}@{each}" for model in found for each in _versions(model)]


def models_or_mentions(ctx: click.Context, incomplete: str) -> list[str]:
    """Models, and with an ``@`` the versions of the one that is before it."""
    return mentions(ctx, incomplete) if "@" in incomplete else models(ctx, incomplete)


@_silent
def versions(ctx: click.Context, _: str) -> Iterable[str]:
    """The versions and aliases of the model that was named before (`name`)."""
    return _versions(_context(ctx).registry().model(ctx.params["name"]))


@_silent
def assignments(ctx: click.Context, incomplete: str) -> Iterable[str]:
    """``ALIAS=VERSION`` for the model that was named before; with ``--delete``, its aliases."""
    model = _context(ctx).registry().model(ctx.params["name"])
    typed, separator, _ = incomplete.partition("=")
    aliases = [typed] if separator else [each for each in model.aliases if each != "stable"]
    if ctx.params.get("delete"):
        return aliases
    return [f"{alias}={each}" for alias in aliases for each in _versions(model) if each != alias]


def explained(ctx: click.Context, incomplete: str) -> list[str]:
    """What `ctl explain` takes: a model, or a kind and then one of that kind."""
    before = ctx.params.get("what") or ()
    if not before:
        return [*(each for each in ("fleet", "model") if each.startswith(incomplete)), *models(ctx, incomplete)]
    kinds: dict[str, Suggest] = {"fleet": fleets, "model": models}
    return kinds[before[0]](ctx, incomplete) if len(before) == 1 and before[0] in kinds else []


def _names(ctx: click.Context, folder: str) -> list[str]:
    from controlplane.registry.layout import name_in

    listed = _context(ctx).registry().store.list(folder)
    return [name for each in listed if (name := name_in(each.key, folder))]


def _versions(model: Model) -> list[str]:
    return [*(str(each.number) for each in model.versions if each.deleted_at is None), *model.aliases]


def _context(ctx: click.Context) -> Context:
    """The global options, from what has been typed so far: while completing, no command runs."""
    found = ctx.find_root()
    root, typed = found.params, found.get_parameter_source("home") is ParameterSource.COMMANDLINE
    target = Target(root.get("context"), root.get("namespace"), root.get("release"), root.get("kubeconfig"))
    return Context(Home(root.get("home") or DEFAULT_HOME), root.get("registry_url"), target, home_typed=typed)
