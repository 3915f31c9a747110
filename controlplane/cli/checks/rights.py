"""Who may do what: the person at the terminal, and the controller."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from controlplane.cli.checks.finding import Finding, State
from controlplane.cli.cluster.api import Api

COORDINATION, APPS, TOKENS = "coordination.k8s.io", "apps", "authentication.k8s.io"


@dataclass(frozen=True, slots=True)
class Right:
    """A verb on a resource (perhaps a subresource, perhaps one of a name). `why`: what can't be done without it."""

    verb: str
    resource: str
    group: str = ""
    name: str = ""
    why: str = ""
    needed: bool = True
    everywhere: bool = False

    def __str__(self) -> str:
        resource = f"{self.resource}.{self.group}" if self.group else self.resource
        return f"{self.verb} {resource}{f' {self.name}' if self.name else ''}"

    def attributes(self, namespace: str) -> dict[str, Any]:
        """As a SubjectAccessReview has it."""
        resource, _, subresource = self.resource.partition("/")
        where = {} if self.everywhere else {"namespace": namespace}
        what = {"verb": self.verb, "group": self.group, "resource": resource, "subresource": subresource}
        return {**where, **what, "name": self.name}


def of_person(release: str) -> list[Right]:
    """What `ctl --context` does in a person's name."""
    return [
        Right("get", "leases", COORDINATION, f"{release}-controller", "finding the controller that leads"),
        Right("create", "serviceaccounts/token", name=f"{release}-ctl", why="speaking to the controller"),
        Right("get", "pods/portforward", why="reaching the controller and the gateway"),
        Right("create", "pods/portforward", why="reaching the controller and the gateway"),
        Right("get", "configmaps", name=f"{release}-config", why="finding the registry; else name it with --registry"),
        Right("get", "services", name=f"{release}-gateway", why="`ctl infer`"),
        Right("list", "pods", why="`ctl infer` and `ctl doctor`"),
        Right("list", "deployments", APPS, why="finding the release; else name it with --release", needed=False),
        Right("list", "nodes", why="checking nodes against fleets with GPUs", needed=False, everywhere=True),
    ]


def of_controller(release: str, fleets: Sequence[str]) -> list[Right]:
    """What a controller does: the rules of the chart."""
    wide = [
        *(Right(verb, "deployments", APPS) for verb in ("get", "list", "watch")),
        *(Right(verb, "pods") for verb in ("get", "list", "watch", "patch")),
        *(Right(verb, "events") for verb in ("create", "patch")),
        Right("create", "leases", COORDINATION),
        Right("create", "tokenreviews", TOKENS, everywhere=True),
    ]
    lease = [Right(verb, "leases", COORDINATION, f"{release}-controller") for verb in ("get", "update", "patch")]
    scale = [
        Right(verb, "deployments/scale", APPS, f"{release}-{fleet}") for fleet in fleets for verb in ("get", "patch")
    ]
    return [*wide, *lease, *scale]


def person(api: Api, release: str) -> Iterator[Finding]:
    """What the person may not do, each with what it is needed for."""

    def may(right: Right) -> bool:
        answer = api.ask(
            api.authorization.create_self_subject_access_review,
            {"spec": {"resourceAttributes": right.attributes(api.namespace)}},
            doing="create selfsubjectaccessreviews",
        )
        return bool(answer.status.allowed)

    rights = of_person(release)
    denied = [right for right in rights if not may(right)]
    for right in denied:
        state: State = "problem" if right.needed else "warning"
        yield Finding(
            "your rights",
            state,
            f"you may not {right} in namespace {api.namespace}: it is needed for {right.why}",
            "ask who administers the cluster for this right; the chart's value ctl.subjects gives what is needed",
        )
    if not denied:
        yield Finding("your rights", "ok", f"you may do all {len(rights)} things that ctl needs")


def controller(api: Api, release: str, fleets: Sequence[str]) -> Iterator[Finding]:
    """What the controller's ServiceAccount may not do. Raises Unauthenticated where only others may ask that."""
    account = f"{release}-controller"
    subject = {
        "user": f"system:serviceaccount:{api.namespace}:{account}",
        "groups": ["system:serviceaccounts", f"system:serviceaccounts:{api.namespace}", "system:authenticated"],
    }

    def may(right: Right) -> bool:
        answer = api.ask(
            api.authorization.create_subject_access_review,
            {"spec": {**subject, "resourceAttributes": right.attributes(api.namespace)}},
            doing="create subjectaccessreviews",
        )
        return bool(answer.status.allowed)

    rights = of_controller(release, fleets)
    denied = [right for right in rights if not may(right)]
    for right in denied:
        yield Finding(
            "controller's rights",
            "problem",
            f"serviceaccount {account} may not {right} in namespace {api.namespace}",
            "the chart's Role and ClusterRole give it: `helm upgrade` restores them, if they were changed by hand",
        )
    if not denied:
        yield Finding("controller's rights", "ok", f"serviceaccount {account} may do all {len(rights)} things it needs")
