"""Where the controller is and with which token to speak to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import TypeAdapter

from controlplane.core.errors import InvalidInput, Unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """The controller's base URL, without a slash at the end, and the bearer token. The token is never printed."""

    url: str
    token: str

    def __repr__(self) -> str:
        return f"Access(url={self.url!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerAddress:
    """What the controller leaves in its address file when it has its port."""

    url: str
    pid: int


def read_access(address_file: Path, token_file: Path) -> Access:
    """The access that the two files describe. Raises Unavailable when the controller has never been there."""
    try:
        address = TypeAdapter(ControllerAddress).validate_json(address_file.read_bytes())
        token = token_file.read_text().strip()
    except FileNotFoundError as error:
        raise Unavailable(
            f"no controller has left its address in {error.filename}",
            remedy="start it with `ctl up`, or name its home folder (--home, or CTL_HOME_DIR)",
        ) from error
    return Access(url=address.url, token=token)


def fixed_access(url: str, token_file: Path) -> Callable[[], Access]:
    """The access to a controller at a known URL. The token is read anew at each call: on Kubernetes it is renewed in
    its file. Raises InvalidInput for what is no URL; each call raises Unavailable while there is no token."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise InvalidInput(
            f"{url!r} is no URL of a controller",
            field="--controller-url",
            remedy="give it as http://HOST:PORT",
        )

    def access() -> Access:
        try:
            token = token_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Unavailable(
                f"the token can't be read: {error}", remedy="see that --token-file names a file with a token"
            ) from error
        if not token:
            raise Unavailable(f"{token_file} is empty", remedy="see that --token-file names a file with a token")
        return Access(url=url.rstrip("/"), token=token)

    return access
