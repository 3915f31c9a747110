"""Which controller to call: the address that everybody is given, or the leader that a standby has named."""

from __future__ import annotations

from urllib.parse import urlsplit

MOST_HOPS = 2
"""How often one call is led on, at most."""
MISDIRECTED = 421


class Leader:
    """Remembers the leader that was named, until it fails.

    Only an address that an answer's `location` header gives is followed, only over http or https, and never from https
    to http: the token goes there too.
    """

    def __init__(self) -> None:
        self._given = self._named = ""

    def url(self, given: str) -> str:
        """The base URL to call, where `given` is what is configured. Another configuration forgets the leader."""
        if given != self._given:
            self._given, self._named = given, ""
        return self._named or given

    def follow(self, location: str | None) -> bool:
        """An answer named the leader (None: it did not). Whether there is somewhere else to go now."""
        base = _base(location, self._given)
        if base is None or base == (self._named or self._given):
            self._named = ""
            return False
        self._named = base
        return True

    def failed(self) -> None:
        """Whoever was called does not answer as it should: back to what is configured."""
        self._named = ""


def _base(location: str | None, given: str) -> str | None:
    """The base URL of a location, without a slash at the end; None for one that is not followed."""
    try:
        parts = urlsplit((location or "").strip())
        port = parts.port
    except ValueError:
        return None
    downgrade = parts.scheme == "http" and given.startswith("https:")
    if parts.scheme not in ("http", "https") or not parts.hostname or downgrade or parts.username is not None:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{port}" if port else "")
