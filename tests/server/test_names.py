"""Names that the controller looks up."""

from __future__ import annotations

from controlplane.server.names import Names
from tests.waiting import until


def test_what_is_known_and_what_is_not() -> None:
    names = Names(["localhost", "nobody.invalid"])
    names.start()
    try:
        until(lambda: len(names.problems) == 2, timeout_s=60)
        assert names.problems["localhost"] is None
        assert names.problems["nobody.invalid"], "why not"
    finally:
        names.stop()
