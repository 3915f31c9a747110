"""What is made of Envoy's counts of failures."""

from __future__ import annotations

import pytest

from controlplane.core.messages import Failing
from controlplane.core.names import Key
from gateway.failures import WINDOW_S, Failed, Failures, is_failure

A, B = Key("a", 1), Key("b", 2)


@pytest.mark.parametrize("code", ["UNAVAILABLE", "INTERNAL", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "500", "429"])
def test_a_failure(code: str) -> None:
    assert is_failure(code)


@pytest.mark.parametrize(
    "code", ["OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "CANCELED", "200", "404", "501", "0"]
)
def test_no_failure(code: str) -> None:
    assert not is_failure(code)


def test_what_failed_between_the_looks_by_version_and_replica() -> None:
    failures = Failures()
    failures.take({Failed(A, "INTERNAL", "r1"): 100, Failed(A, "OK", "r1"): 5}, 0.0)
    assert not failures.failing, "nobody knows since when"
    counts = {
        Failed(A, "INTERNAL", "r1"): 110,
        Failed(A, "503", "r2"): 7,
        Failed(A, "503", ""): 3,
        Failed(A, "OK", "r1"): 500,
        Failed(B, "UNKNOWN", ""): 5,
        Failed(B, "OK", "r1"): 9,
    }
    failures.take(counts, 10.0)
    assert failures.failing == (
        Failing(model="a", version=1, errors_per_s=2.0, replicas={"r1": 1.0, "r2": 0.7}),
        Failing(model="b", version=2, errors_per_s=0.5, replicas={}),
    )


def test_what_was_refused_is_told_apart_from_what_a_server_refuses() -> None:
    failures = Failures()
    failures.take({}, 0.0)
    counts = {
        Failed(A, "RESOURCE_EXHAUSTED", ""): 20,
        Failed(A, "429", ""): 10,
        Failed(A, "RESOURCE_EXHAUSTED", "r1"): 5,
        Failed(A, "UNAVAILABLE", ""): 5,
    }
    failures.take(counts, 10.0)
    assert failures.failing == (
        Failing(model="a", version=1, errors_per_s=4.0, replicas={"r1": 0.5}, refused_per_s=3.0),
    )


def test_what_is_long_ago_is_forgotten() -> None:
    failures, at, count = Failures(), 0.0, 0
    failures.take({}, at)
    while at < 2 * WINDOW_S:
        at, count = at + 5.0, min(count + 5, 10)
        failures.take({Failed(A, "INTERNAL", "r1"): count}, at)
    assert not failures.failing


def test_an_envoy_that_begins_anew_has_counted_from_zero() -> None:
    failures = Failures()
    failures.take({Failed(A, "INTERNAL", "r1"): 100}, 0.0)
    failures.take({Failed(A, "INTERNAL", "r1"): 100}, 5.0)
    failures.take({Failed(A, "INTERNAL", "r1"): 3}, 10.0)
    failures.take({Failed(A, "INTERNAL", "r1"): 13}, 15.0)
    (failing,) = failures.failing
    assert failing.errors_per_s == pytest.approx(13 / 10), "since the last look at the one before"


def test_what_envoy_has_forgotten_makes_nothing_else_begin_anew() -> None:
    failures = Failures()
    failures.take({Failed(A, "INTERNAL", "r1"): 7, Failed(A, "INTERNAL", "r2"): 1000}, 0.0)
    failures.take({Failed(A, "INTERNAL", "r2"): 1005}, 5.0)
    assert failures.failing == (Failing(model="a", version=1, errors_per_s=1.0, replicas={"r2": 1.0}),)
    failures.take({Failed(A, "INTERNAL", "r1"): 2, Failed(A, "INTERNAL", "r2"): 1005}, 10.0)
    assert failures.failing == (Failing(model="a", version=1, errors_per_s=0.7, replicas={"r1": 0.2, "r2": 0.5}),)


def test_a_window_outlasts_what_is_forgotten_in_it() -> None:
    failures = Failures()
    for look in range(6):
        counts = {Failed(A, "INTERNAL", "r2"): 60 * look}
        failures.take(counts | ({Failed(A, "INTERNAL", "r1"): 7} if look < 5 else {}), 5.0 * look)
    assert failures.failing == (Failing(model="a", version=1, errors_per_s=12.0, replicas={"r2": 12.0}),)


def test_an_envoy_that_says_nothing_any_more_says_nothing_of_now() -> None:
    failures = Failures()
    failures.take({}, 0.0)
    failures.take({Failed(A, "INTERNAL", "r1"): 10}, 5.0)
    failures.missed(5.0 + WINDOW_S - 1)
    assert failures.failing, "a moment without an answer changes nothing"
    failures.missed(5.0 + WINDOW_S)
    assert not failures.failing
