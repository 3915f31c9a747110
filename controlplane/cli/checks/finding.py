"""What a check has found, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from controlplane.core.errors import ControlPlaneError, InvalidEntry, Unauthenticated

State = Literal["ok", "warning", "problem", "unchecked"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`unchecked`: it could not be looked at from here; that is no problem by itself."""

    check: str
    state: State
    what: str
    remedy: str | None = None


Check = Callable[[], Iterable[Finding]]


def found(check: str, looked: Check) -> Iterator[Finding]:
    """What a check finds; an error that stops it is a finding too, and a missing right leaves things unchecked."""
    try:
        yield from looked()
    except InvalidEntry as error:
        for each in error.problems:
            yield Finding(
                check, "problem", f"{error.subject}: {each.field + ': ' if each.field else ''}{each.what}", each.remedy
            )
    except Unauthenticated as error:
        yield Finding(check, "unchecked", error.what, error.remedy)
    except ControlPlaneError as error:
        yield Finding(check, "problem", error.what, error.remedy)
