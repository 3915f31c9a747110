"""Clocks: S3 refuses requests whose time is wrong, certificates and tokens hold from and until a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from controlplane.cli.checks.finding import Finding

FINE_S, BAD_S = 5.0, 300.0
"""A Date header is exact to a second, and the way takes time. S3 refuses beyond 15 minutes."""


def skew(of: str, ask: Callable[[], float | None]) -> Iterator[Finding]:
    """Compare our clock with what `ask` tells: seconds since 1970, or None."""
    before = time.time()
    theirs = ask()
    after = time.time()
    if theirs is None:
        yield Finding("clock", "unchecked", f"{of} does not tell its time")
    else:
        yield compared(of, ours=(before + after) / 2, theirs=theirs + 0.5)


def compared(of: str, *, ours: float, theirs: float) -> Finding:
    """What a difference means."""
    ahead = ours - theirs
    if abs(ahead) <= FINE_S:
        return Finding("clock", "ok", f"our clock and that of {of} agree to within {FINE_S:.0f} s")
    return Finding(
        "clock",
        "problem" if abs(ahead) > BAD_S else "warning",
        f"our clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} that of {of}",
        "set the clock that is wrong by NTP (`timedatectl set-ntp true`); S3 refuses requests that are 15 minutes off",
    )


def s3_time() -> float | None:
    """What S3's server says that the time is; no credentials are needed for it. None where it doesn't answer."""
    import boto3
    import httpx2
    from botocore.exceptions import BotoCoreError

    from controlplane.cli.checks.dates import date_of

    try:
        session = boto3.Session()
        endpoint = session.client("s3", region_name=session.region_name or "us-east-1").meta.endpoint_url
        return date_of(httpx2.head(endpoint, timeout=5.0).headers.get("date"))
    except (BotoCoreError, httpx2.HTTPError, ValueError):
        return None
