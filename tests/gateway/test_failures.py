"""What is made of Envoy's counts of answers."""

from __future__ import annotations

import pytest

from controlplane.core.messages import Failing
from controlplane.core.names import Key
from gateway.failures import WINDOW_S, Failures, is_failure

A, B = Key("a", 1), Key("b", 2)


@pytest.mark.parametrize("code", ["UNAVAILABLE", "INTERNAL", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "500", "429"])
def test_a_failure(code: str) -> None:
    assert is_failure(code)


@pytest.mark.parametrize("code", ["OK", "INVALID_ARGUMENT", "NOT_FOUND", "CANCELED", "200", "404", "0"])
def test_no_failure(code: str) -> None:
    assert not is_failure(code)


def test_what_failed_between_the_looks_by_version() -> None:
    failures = Failures()
    failures.take({(A, "INTERNAL"): 100, (A, "OK"): 5}, 0.0)
    assert not failures.failing, "nobody knows since when"
    failures.take({(A, "INTERNAL"): 110, (A, "503"): 10, (A, "OK"): 500, (B, "UNKNOWN"): 5, (B, "OK"): 9}, 10.0)
    assert failures.failing == (
        Failing(model="a", version=1, errors_per_s=2.0),
        Failing(model="b", version=2, errors_per_s=0.5),
    )


def test_what_is_long_ago_is_forgotten() -> None:
    failures, at, count = Failures(), 0.0, 0
    failures.take({}, at)
    while at < 2 * WINDOW_S:
        at, count = at + 5.0, min(count + 5, 10)
        failures.take({(A, "INTERNAL"): count}, at)
    assert not failures.failing


def test_an_envoy_that_begins_anew_has_counted_from_zero() -> None:
    failures = Failures()
    failures.take({(A, "INTERNAL"): 100}, 0.0)
    failures.take({(A, "INTERNAL"): 100}, 5.0)
    failures.take({(A, "INTERNAL"): 3}, 10.0)
    failures.take({(A, "INTERNAL"): 13}, 15.0)
    (failing,) = failures.failing
    assert failing.errors_per_s == pytest.approx(13 / 10), "since the last look at the one before"


def test_an_envoy_that_says_nothing_any_more_says_nothing_of_now() -> None:
    failures = Failures()
    failures.take({}, 0.0)
    failures.take({(A, "INTERNAL"): 10}, 5.0)
    failures.missed(5.0 + WINDOW_S - 1)
    assert failures.failing, "a moment without an answer changes nothing"
    failures.missed(5.0 + WINDOW_S)
    assert not failures.failing
