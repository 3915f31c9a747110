"""What depends on the server: its release, and what only the control plane may decide."""

from __future__ import annotations

import re
from collections.abc import Iterator

from controlplane.core.errors import InvalidInput
from controlplane.render.checks.case import Case

OWNED = {
    "name": "the entry's `name`",
    "platform": "the entry's `backend`",
    "backend": "the entry's `backend`",
    "version_policy": "the registry's versions",
    "max_batch_size": "the entry's `max_batch_size`",
    "default_model_filename": "the entry's `default_model_filename`",
}
"""Fields that the raw `config` may not set, and where they come from."""

SINCE: dict[str, tuple[int, int]] = {
    "model_metrics": (2, 54),
    "ensemble_scheduling.max_inflight_requests": (2, 63),
}
"""Fields that the client's schema knows and older servers refuse, with the first release that takes them.

Measured on 2.51, which lacks exactly these; the releases are those in whose notes they appear."""

HAZARDS = {
    "model_operations": "loads a shared library into the server itself",
    "model_repository_agents": "runs an agent inside the server while it loads",
}
"""Fields by which one model could take the whole server down or over."""


def owned_fields(case: Case) -> Iterator[InvalidInput]:
    """The raw `config` sets what is decided elsewhere."""
    for name, source in OWNED.items():
        # A number set to 0 can't be told from one not set, once it is parsed.
        if name in case.raw or (name == "max_batch_size" and re.search(r"\bmax_batch_size\s*:", case.entry.config)):
            yield InvalidInput(
                f"`{name}` comes from {source}",
                field=f"config: {name}",
                remedy="leave it out of the raw `config`",
            )


def server_version(case: Case) -> Iterator[InvalidInput]:
    """A field that this release of the server does not know makes it refuse the whole file."""
    release = tuple(int(part) for part in re.findall(r"\d+", case.capabilities.server_version)[:2])
    for path, since in SINCE.items():
        if release < since and _is_set(case, path):
            yield case.finding(
                path.split(".")[0],
                "".join(f".{part}" for part in path.split(".")[1:]),
                f"needs Triton {since[0]}.{since[1]}; the fleet's servers are {case.capabilities.server_version}",
                "leave it out, or use a fleet with newer servers",
            )


def _is_set(case: Case, path: str) -> bool:
    head, _, rest = path.partition(".")
    if not case.config.HasField(head):
        return False
    return not rest or any(field.name == rest for field, _ in getattr(case.config, head).ListFields())


def raw_hazards(case: Case) -> Iterator[InvalidInput]:
    """A model may hurt itself, not the server that it shares."""
    for name, why in HAZARDS.items():
        if case.config.HasField(name):
            yield case.finding(name, "", f"{why}, for all its models", "leave it out; put such code into the image")
