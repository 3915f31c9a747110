"""What the controller itself tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from controlplane.cli.checks.finding import Finding


def running(status: Mapping[str, Any]) -> Iterator[Finding]:
    """What `/v1/status` answers, as findings."""
    for key, problem in status["problems"].items():
        yield Finding("controller", "problem", f"{key}: {problem}", f"`ctl explain {key}` may tell more; or its log")
    ready, wanted = status["replicas_ready"], status["replicas_wanted"]
    words = f"{ready} of {wanted} replicas are ready"
    if ready < wanted:
        yield Finding("controller", "warning", words, "`ctl get replicas` says what each does")
    elif not status["problems"]:
        yield Finding("controller", "ok", f"it answers; {words}")
    if not status["gateways_ready"]:
        yield Finding("controller", "problem", "no gateway is ready: nobody is served", "look at the gateways' logs")
