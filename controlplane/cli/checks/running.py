"""What the controller itself tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from controlplane.cli.checks.finding import Finding


def running(status: Mapping[str, Any]) -> Iterator[Finding]:
    """What `/v1/status` answers, as findings."""
    for key, problem in status["problems"].items():
        yield Finding("controller", "problem", f"{key}: {problem}", _where_more(key))
    ready, wanted = status["replicas_ready"], status["replicas_wanted"]
    words = f"{ready} of {wanted} replicas are ready"
    if ready < wanted:
        yield Finding("controller", "warning", words, "`ctl get replicas` says what each does")
    elif not status["problems"]:
        yield Finding("controller", "ok", f"it answers; {words}")
    if not status["gateways_ready"]:
        yield Finding("controller", "problem", "no gateway is ready: nobody is served", "look at the gateways' logs")


def _where_more(about: str) -> str:
    """Of a model's document and of a fleet there is more to be had."""
    kind, _, name = about.replace("/", " ").removesuffix(".json").partition(" ")
    if name and kind in ("fleet", "model", "models"):
        return f"`ctl explain {kind.removesuffix('s')} {name}` may tell more; or the controller's log"
    return "the controller's log tells more"
