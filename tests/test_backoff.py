"""Pauses before another attempt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.backoff import backoff_s


@pytest.mark.parametrize(("failures", "most_s"), [(0, 0.2), (1, 0.2), (2, 0.4), (4, 1.6), (7, 10.0), (100_000, 10.0)])
def test_pauses_double_up_to_a_limit(failures: int, most_s: float) -> None:
    pauses = [backoff_s(failures, 0.2, 10.0) for _ in range(200)]
    assert most_s / 2 <= min(pauses) < max(pauses) <= most_s
    assert len(set(pauses)) > 100, "not all at once"


@given(failures=st.integers(0, 10**9), least_s=st.floats(0.001, 10), more_s=st.floats(0, 1e6))
def test_whatever_fails_however_often_has_a_pause(failures: int, least_s: float, more_s: float) -> None:
    assert least_s / 2 <= backoff_s(failures, least_s, least_s + more_s) <= least_s + more_s
