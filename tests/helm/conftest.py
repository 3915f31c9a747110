"""The real Kubernetes API of `tests/kubernetes`, for the installations below here."""

from __future__ import annotations

from tests.kubernetes.conftest import api_server, namespace, pytest_runtestloop

__all__ = ["api_server", "namespace", "pytest_runtestloop"]
