"""Where a local system's signals come from: its settings (`metrics:` in the system file), and their check."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as validated

from controlplane.core.errors import ControlPlaneError, InvalidInput
from controlplane.local.home import Home

DOCUMENTATION = "see docs/metrics.md"


@validated(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class MetricsSettings:
    """What is asked for the servers' counters.

    `source`: the servers themselves (scrape), or a Prometheus. `prometheus_url`: of one that runs. `program`: one that
    `ctl up` starts (a path, or a name on PATH), also beside `source: scrape`.
    """

    source: Literal["scrape", "prometheus"] = "scrape"
    prometheus_url: str | None = None
    program: str | None = None


def located(settings: MetricsSettings, folder: Path) -> MetricsSettings:
    """The settings with the program's whole path, where it is found. A path is relative to `folder`."""
    if not settings.program:
        return settings
    is_path = "/" in settings.program
    found = shutil.which(folder / Path(settings.program).expanduser() if is_path else settings.program)
    return replace(settings, program=str(Path(found).resolve())) if found else settings


def problems(settings: MetricsSettings) -> Iterator[ControlPlaneError]:
    """What is wrong with settings that were `located`."""
    url, program = settings.prometheus_url, settings.program
    if url is not None:
        if settings.source == "scrape":
            yield InvalidInput(
                "nothing would ask this Prometheus, since source is scrape",
                field="metrics.prometheus_url",
                remedy="set `source: prometheus`, or leave it out",
            )
        if not _is_url(url):
            yield InvalidInput(
                f"{url!r} is no address of a Prometheus",
                field="metrics.prometheus_url",
                remedy="write it like http://127.0.0.1:9090, with a path only where a proxy wants one",
            )
        if program is not None:
            yield InvalidInput(
                "a Prometheus that runs (prometheus_url) and one to start (program): one alone can be asked",
                field="metrics",
                remedy="leave one of them out",
            )
    elif settings.source == "prometheus" and program is None:
        yield InvalidInput(
            "there is no Prometheus to ask",
            field="metrics",
            remedy="give `prometheus_url` of one that runs, or `program` to have one started, or `source: scrape`",
        )
    if program is not None and (not Path(program).is_absolute() or shutil.which(program) is None):
        yield InvalidInput(
            f"{program!r} is no program that can be found",
            field="metrics.program",
            remedy="install Prometheus (Debian: `apt-get install prometheus`; or download it), then give its path, "
            "or a name on PATH; `source: scrape` does without",
        )


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        given = (parts.hostname, parts.port)  # raises for a port that is none
    except ValueError:
        return False
    plain = not parts.query and not parts.fragment and not any(each.isspace() or ord(each) < 32 for each in url)
    return parts.scheme in ("http", "https") and bool(given[0]) and given[1] != 0 and plain


def prometheus_url(settings: MetricsSettings, home: Home) -> str | None:
    """Where the system's Prometheus is, without a slash at the end; None where there is none (yet)."""
    if settings.prometheus_url is not None:
        return settings.prometheus_url.rstrip("/")
    if settings.program is None:
        return None
    try:
        return home.prometheus_file.read_text().strip() or None
    except OSError:
        return None


def shown_url(url: str) -> str:
    """An address as it may be shown: without a password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
