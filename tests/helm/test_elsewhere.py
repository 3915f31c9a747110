"""What the clusters that tests start here have nothing for: it is rendered as the golden manifests say, and not run."""

from __future__ import annotations

import pytest

from tests.helm.rendering import GOLDEN
from tests.kubernetes.control_plane import ControlPlane

ELSEWHERE = {
    "NetworkPolicies are not enforced": ("kind: NetworkPolicy", ("cilium.io", "crd.projectcalico.org")),
    "nobody measures pods for a HorizontalPodAutoscaler": ("kind: HorizontalPodAutoscaler", ("metrics.k8s.io",)),
    "there are no IAM roles for ServiceAccounts": ("eks.amazonaws.com/role-arn", ("vpcresources.k8s.aws",)),
    "there is no cert-manager": ("kind: Certificate", ("cert-manager.io",)),
    "there is no Gateway API": ("kind: GRPCRoute", ("gateway.networking.k8s.io",)),
}
"""With what a golden manifest has of each, and groups of the API that are there where it could be tried."""


@pytest.mark.parametrize("what", ELSEWHERE)
def test_what_this_cluster_has_nothing_for(api_server: ControlPlane, what: str) -> None:
    text, groups = ELSEWHERE[what]
    assert any(text in path.read_text() for path in GOLDEN.glob("*.yaml")), f"no golden manifest has {text}"
    served = {each.partition("/")[0] for each in api_server.kubectl("api-versions").split()}
    if not served.intersection(groups):
        pytest.skip(f"not run: {what} here (golden-tested only)")
    raise AssertionError(f"this cluster has {served.intersection(groups)}: try it here")
