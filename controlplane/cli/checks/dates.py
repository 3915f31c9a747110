"""The Date header of HTTP."""

from __future__ import annotations

from email.utils import parsedate_to_datetime


def date_of(header: str | None) -> float | None:
    """A Date header as seconds since 1970; None where it is none."""
    try:
        return parsedate_to_datetime(header).timestamp() if header else None
    except ValueError:
        return None
