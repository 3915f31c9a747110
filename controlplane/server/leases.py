"""A Lease of Kubernetes (coordination.k8s.io/v1), behind the protocol of `leading`. Calls block, and never retry."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from kubernetes.client import ApiException, AppsV1Api, Configuration, CoordinationV1Api
from urllib3.exceptions import HTTPError

from controlplane.core.errors import Busy, Conflict, ControlPlaneError, Unavailable
from controlplane.fleet.cluster import client_of, told
from controlplane.server.leading import Record

ADDRESS = "triton-controlplane.io/address"
"""The annotation with the holder's address."""
MARK = ("holderIdentity", "acquireTime", "renewTime", "leaseTransitions", "leaseDurationSeconds")
MERGE = "application/merge-patch+json"
TIMEOUT_S = 2.0


class KubernetesLease:
    """One Lease object. `owner`: an owner reference; what it names takes the lease along when it is deleted."""

    def __init__(
        self,
        configuration: Configuration,
        *,
        namespace: str,
        name: str,
        owner: Mapping[str, Any] | None = None,
        labels: Mapping[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._api = CoordinationV1Api(client_of(configuration))
        self._namespace, self._name = namespace, name
        self._timeout_s = timeout_s
        self._metadata: dict[str, Any] = {"labels": dict(labels or {})}
        if owner is not None:
            self._metadata["ownerReferences"] = [dict(owner)]

    def read(self) -> Record | None:
        """The present state; None when there is no lease."""
        try:
            return self._record(
                lambda: self._api.read_namespaced_lease(
                    self._name, self._namespace, _preload_content=False, _request_timeout=self._timeout_s
                ),
                "get",
            )
        except ApiException as error:
            if error.status == 404:
                return None
            raise self._told(error, "get") from error

    def create(self, *, holder: str, address: str, lease_s: float) -> Record:
        """Make it, held. Raises Conflict when it is there."""
        now = _micro_time()
        body: dict[str, Any] = {
            "metadata": {**self._metadata, "name": self._name, "annotations": {ADDRESS: address}},
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": round(lease_s),
                "acquireTime": now,
                "renewTime": now,
                "leaseTransitions": 0,
            },
        }
        return self._written(
            lambda: self._api.create_namespaced_lease(
                self._namespace,
                body,  # type: ignore[arg-type]  # it takes plain data too
                _preload_content=False,
                _request_timeout=self._timeout_s,
            ),
            "create",
        )

    def write(self, before: Record, *, holder: str, address: str, lease_s: float) -> Record:
        """Take it, renew it, or give it back. Raises Conflict when it is not as it was `before`."""
        now = _micro_time()
        spec: dict[str, Any] = {"holderIdentity": holder, "leaseDurationSeconds": round(lease_s), "renewTime": now}
        metadata: dict[str, Any] = {"resourceVersion": before.version, "annotations": {ADDRESS: address or None}}
        if holder and holder != before.holder:
            metadata |= self._metadata
            spec |= {"acquireTime": now, "leaseTransitions": before.transitions + 1}
        return self._written(
            lambda: self._api.patch_namespaced_lease(
                self._name,
                self._namespace,
                {"metadata": metadata, "spec": spec},
                _content_type=MERGE,
                _preload_content=False,
                _request_timeout=self._timeout_s,
            ),
            "patch",
        )

    def _written(self, call: Callable[[], Any], verb: str) -> Record:
        try:
            return self._record(call, verb)
        except ApiException as error:
            if error.status in (404, 409):
                raise Conflict(f"lease {self._name} is not as it was") from error
            raise self._told(error, verb) from error

    def _record(self, call: Callable[[], Any], verb: str) -> Record:
        try:
            answer = json.loads(call().data)
            metadata, spec = answer["metadata"], answer.get("spec") or {}
            return Record(
                version=str(metadata["resourceVersion"]),
                mark=tuple(str(spec.get(name)) for name in MARK),
                holder=str(spec.get("holderIdentity") or ""),
                address=str((metadata.get("annotations") or {}).get(ADDRESS) or ""),
                lease_s=float(spec.get("leaseDurationSeconds") or 0.0),
                transitions=int(spec.get("leaseTransitions") or 0),
            )
        except (HTTPError, OSError) as error:
            raise Unavailable(f"the API server does not answer: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unavailable(f"the API server's answer to {verb} lease {self._name} is no lease") from error

    def _told(self, error: ApiException, verb: str) -> ControlPlaneError:
        return _busy(error) or told(error, f"{verb} lease {self._name}")


def owner_of(configuration: Configuration, *, namespace: str, deployment: str) -> dict[str, Any]:
    """The owner reference that names a Deployment. Raises ControlPlaneError."""
    try:
        answer: Any = AppsV1Api(client_of(configuration)).read_namespaced_deployment(
            deployment, namespace, _preload_content=False, _request_timeout=TIMEOUT_S
        )
        uid = json.loads(answer.data)["metadata"]["uid"]
    except ApiException as error:
        raise told(error, f"get deployment {deployment}") from error
    except (HTTPError, OSError, ValueError, KeyError, TypeError) as error:
        raise Unavailable(f"the API server does not answer: {error}") from error
    return {"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment, "uid": uid}


def _busy(error: ApiException) -> Busy | None:
    """The pause that a refusal asks for, if it does."""
    after = str((error.headers or {}).get("retry-after", ""))
    if not after.isdecimal():
        return None
    return Busy(f"the API server asks for a pause (HTTP status {error.status})", retry_after_s=float(after))


def _micro_time() -> str:
    """Now, for people to read. A MicroTime has six digits behind the point, always."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
