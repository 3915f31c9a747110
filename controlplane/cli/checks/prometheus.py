"""Whether the Prometheus that signals come from answers."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx2

from controlplane.cli.checks.dns import resolves
from controlplane.cli.checks.finding import Finding
from controlplane.local.metrics import shown_url

ANSWER_S = 5.0


def prometheus(url: str | None, *, ours: bool) -> Iterator[Finding]:
    """`ours`: it is asked from this machine; else from pods, and a name that means nothing here may do so there."""
    if url is None:
        return
    shown = shown_url(url)
    host = urlsplit(url).hostname or ""
    if not ours and not resolves(host):
        yield Finding(
            "prometheus",
            "unchecked",
            f"{host} is no name that this machine knows; the controller asks it from inside the cluster",
            "see what the controller says of it: `ctl status`, and its log",
        )
        return
    try:
        answer = httpx2.get(f"{url.rstrip('/')}/api/v1/query", params={"query": "1"}, timeout=ANSWER_S)
        said = answer.json().get("status") if answer.is_success else f"HTTP status {answer.status_code}"
    except (httpx2.HTTPError, ValueError, AttributeError) as error:
        said = str(error) or type(error).__name__
    if said == "success":
        yield Finding("prometheus", "ok", f"{shown} answers")
        return
    yield Finding(
        "prometheus",
        "problem" if ours else "warning",
        f"{shown} does not answer as a Prometheus" + ("" if ours else " from this machine") + f": {said}",
        "correct metrics.prometheus_url; until it answers, the number of replicas stays as it is",
    )
