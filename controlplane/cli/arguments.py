"""Arguments and options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import click
from click.shell_completion import CompletionItem

from controlplane.cli import suggestions

Command = TypeVar("Command", bound=Callable[..., Any])

dry_run_option = click.option("--dry-run", is_flag=True, help="Check everything, change nothing.")
reason_option = click.option("--reason", default="", help="Why: `ctl history` tells it, of fleets `ctl explain fleet`.")


class Reference(NamedTuple):
    """A model's version, as in ``magika@2``."""

    model: str
    version: int

    def __str__(self) -> str:
        return f"{self.model}@{self.version}"


class Mention(NamedTuple):
    """A version as people name it: by its number, or by an alias. `references.resolve` finds the number."""

    model: str
    version: str


class MentionType(click.ParamType[Mention]):
    """``MODEL@VERSION`` or ``MODEL@ALIAS``."""

    name = "model@version"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Mention:
        """Parse it."""
        if isinstance(value, Mention):
            return value
        model, _, version = str(value).rpartition("@")
        if not model or not version:
            self.fail(f"{value!r} is no version; write it as in magika@2 or magika@stable", param, ctx)
        return Mention(model, version)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Offer the versions and aliases that there are."""
        return [CompletionItem(each) for each in suggestions.mentions(ctx, incomplete)]


class DurationType(click.ParamType[float]):
    """``90``, ``90s``, ``15m``, ``1h30m``, ``7d`` → seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse it."""
        if isinstance(value, int | float):
            return float(value)
        text = str(value)
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return float(text)
        match = re.fullmatch("".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in "dhms"), text)
        if match is None or not text:
            self.fail(f"{value!r} is no duration; write it as in 90s, 15m, 1h30m or 7d", param, ctx)
        return sum(
            float(each or 0) * unit_s for each, unit_s in zip(match.groups(), (86_400, 3600, 60, 1), strict=True)
        )


class WholeNumber(click.IntRange):
    """A whole number between bounds."""

    name = "whole number"


MENTION, DURATION = MentionType(), DurationType()


class NameType(click.ParamType[str]):
    """A name, of which the shell offers those that there are."""

    def __init__(self, name: str, suggest: suggestions.Suggest) -> None:
        self.name = name
        self._suggest = suggest

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Offer what begins so."""
        return [CompletionItem(each) for each in self._suggest(ctx, incomplete)]


MODEL = NameType("model", suggestions.models)
MODEL_OR_MENTION = NameType("model", suggestions.models_or_mentions)
VERSION = NameType("version", suggestions.versions)
ASSIGNMENT = NameType("assignment", suggestions.assignments)
FLEET = NameType("fleet", suggestions.fleets)
REPLICA = NameType("replica", suggestions.replicas)
EXPLAINED = NameType("name", suggestions.explained)
