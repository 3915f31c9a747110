"""What can go wrong, as one family of errors.

Each error has a stable code, says what happened, names the field where there is one, and says what to do.
`STATUS` is the only place where a code becomes an exit status or an HTTP status.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple


class ControlPlaneError(Exception):
    """Base of every error that a person or a client is meant to read.

    `what` says what happened, `field` where in the input (a path such as ``inputs[0].dims``), `remedy` what to do.
    """

    code: ClassVar[str] = "INTERNAL"

    def __init__(self, what: str, *, field: str | None = None, remedy: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.field = field
        self.remedy = remedy

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field else ""
        then = f" ({self.remedy})" if self.remedy else ""
        return f"{where}{self.what}{then}"


class InvalidInput(ControlPlaneError):
    """A file, an entry or an argument is not what it should be."""

    code = "INVALID"


class InvalidEntry(InvalidInput):
    """Several findings about one input at once; `problems` holds them all, in order."""

    def __init__(self, subject: str, problems: tuple[ControlPlaneError, ...]) -> None:
        super().__init__(f"{subject}: " + "; ".join(str(problem) for problem in problems))
        self.subject = subject
        self.problems = problems


class NotFound(ControlPlaneError):
    """A model, version, alias, fleet or file that is not there."""

    code = "NOT_FOUND"


class Conflict(ControlPlaneError):
    """Somebody else changed it first, or something still depends on it."""

    code = "CONFLICT"


class Unauthenticated(ControlPlaneError):
    """Credentials or permissions are missing or wrong."""

    code = "UNAUTHENTICATED"


class Unavailable(ControlPlaneError):
    """A part that is needed does not answer at present."""

    code = "UNAVAILABLE"


class Busy(Unavailable):
    """A part that is needed can't say at present; asking again makes sense in `retry_after_s` seconds."""

    def __init__(self, what: str, *, retry_after_s: float, remedy: str | None = None) -> None:
        super().__init__(what, remedy=remedy)
        self.retry_after_s = retry_after_s


class Overloaded(ControlPlaneError):
    """There is more to do than can be done in time; asking again makes sense in `retry_after_s` seconds."""

    code = "OVERLOADED"

    def __init__(self, what: str, *, retry_after_s: int, field: str | None = None, remedy: str | None = None) -> None:
        super().__init__(what, field=field, remedy=remedy)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(ControlPlaneError):
    """A wait ended before what it waited for came true."""

    code = "DEADLINE_EXCEEDED"


class NewerFormat(ControlPlaneError):
    """A stored document was written by a newer release than this one."""

    code = "NEWER_FORMAT"


class LoadFailed(ControlPlaneError):
    """A server refused a model, or the model failed its proof."""

    code = "LOAD_FAILED"


class NotLeader(ControlPlaneError):
    """An order or a call belongs to an older epoch."""

    code = "NOT_LEADER"


class Status(NamedTuple):
    """How an error leaves the program: a process exit status and an HTTP status."""

    exit: int
    http: int


STATUS: dict[str, Status] = {
    "INTERNAL": Status(1, 500),
    "INVALID": Status(2, 400),
    "NOT_FOUND": Status(1, 404),
    "CONFLICT": Status(5, 409),
    "UNAUTHENTICATED": Status(4, 401),
    "UNAVAILABLE": Status(1, 503),
    "OVERLOADED": Status(1, 429),
    "DEADLINE_EXCEEDED": Status(3, 504),
    "NEWER_FORMAT": Status(1, 409),
    "LOAD_FAILED": Status(1, 502),
    "NOT_LEADER": Status(1, 421),
}
