"""Where the controller is and with which token to speak to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from controlplane.core.errors import Unavailable


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
