"""Two controllers and one Lease, on a real API server."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from controlplane.core.errors import Busy, Conflict, Unavailable
from controlplane.fleet.cluster import configured
from controlplane.server.leading import Timing
from controlplane.server.leases import ADDRESS, KubernetesLease, owner_of
from tests.kubernetes.candidates import RELEASE, Candidate, permissions
from tests.kubernetes.control_plane import ControlPlane, freeze
from tests.kubernetes.crowd import crowded
from tests.waiting import until

LEASE_S = Timing().lease_s
PATIENT = math.ceil(LEASE_S / (0.7 * Timing().look_s)) + 2
"""So often at most a standby looks at a Lease that nobody renews before it leads: each 0.7 s at the shortest for as
long as it lasts, once more when it has run out, and first at a renewal that it had not seen."""
AT_ONCE = 3
"""So often where the Lease was given back: it sees that, and takes it at the next look; once more should a call go
wrong. Looks are counted, not seconds: how busy the machine is shows in those."""
HOUR_S = 3600.0


@pytest.fixture
def kubeconfig(api_server: ControlPlane, namespace: str) -> Path:
    return permissions(api_server, namespace)


@pytest.fixture
def pair(tmp_path: Path, namespace: str, kubeconfig: Path) -> Iterator[tuple[Candidate, Candidate]]:
    """One that leads, and one that stands by."""
    with contextlib.ExitStack() as stack:
        first = Candidate(tmp_path, "first", namespace, kubeconfig)
        stack.callback(first.end)
        until(lambda: first.leads, what="the first does not lead")
        second = Candidate(tmp_path, "second", namespace, kubeconfig)
        stack.callback(second.end)
        until(lambda: second.get("/readyz").status_code == 200, what="the second does not get ready")
        yield first, second


def lease(api_server: ControlPlane, namespace: str) -> Any:
    return api_server.get("lease", f"{RELEASE}-controller", f"--namespace={namespace}")


def figure(what: str, seconds: float) -> None:
    print(f"{what}: {seconds:.2f} s")


def test_one_leads_and_the_other_says_where(
    api_server: ControlPlane, namespace: str, pair: tuple[Candidate, Candidate]
) -> None:
    first, second = pair
    assert not second.leads
    written = lease(api_server, namespace)
    assert written["spec"]["holderIdentity"].startswith("first_")
    assert written["metadata"]["annotations"][ADDRESS] == first.url
    assert second.get("/readyz").json() == {"status": "standby"}
    assert first.get("/readyz").json() == {"status": "leader"}
    for path in ("/v1/status", "/v1/replicas/somebody/sync"):
        answer = second.get(path)
        assert answer.status_code == 421
        assert answer.headers["location"] == first.url
        assert answer.json()["error"]["code"] == "NOT_LEADER"
    assert second.get("/metrics").status_code == 401, "the rest is for callers who are known"


def test_a_killed_leader_is_followed_when_its_lease_has_run_out(pair: tuple[Candidate, Candidate]) -> None:
    first, second = pair
    killed_at = time.monotonic()
    first.send(signal.SIGKILL)
    until(lambda: second.leads, timeout_s=60.0, what="nobody takes over")
    figure("hand-over after kill -9", second.at("serves") - killed_at)
    assert second.looks(killed_at) <= PATIENT
    assert (second.last("serves") or {})["epoch"] > (first.last("serves") or {})["epoch"]


def test_a_leader_that_is_stopped_hands_over_at_once(
    api_server: ControlPlane, namespace: str, pair: tuple[Candidate, Candidate]
) -> None:
    first, second = pair
    told_at = time.monotonic()
    first.send(signal.SIGTERM)
    until(lambda: second.leads, timeout_s=60.0, what="nobody takes over")
    figure("hand-over after SIGTERM", second.at("serves") - told_at)
    assert first.at("stops") <= second.at("leads"), "the new one begins when the old one has ended"
    assert first.process.wait(60) == 0
    assert second.looks(first.at("ends")) <= AT_ONCE, "it did not wait until the lease has run out"
    assert "the lease is given back" in first.log.read_text()
    assert (first.last("ends") or {})["error"] is None
    second.send(signal.SIGTERM)
    assert second.process.wait(60) == 0
    assert lease(api_server, namespace)["spec"].get("holderIdentity", "") == ""
    assert ADDRESS not in lease(api_server, namespace)["metadata"].get("annotations", {})


def test_clocks_that_disagree_by_hours_change_nothing(
    api_server: ControlPlane, tmp_path: Path, namespace: str, kubeconfig: Path
) -> None:
    """What the Lease says of the time is for people: each goes by what it has seen, and since when. First the leader's
    clock is ahead of the standby's, then it is the other way round."""
    with contextlib.ExitStack() as stack:

        def candidate(name: str, offset_s: float) -> Candidate:
            made = Candidate(tmp_path, name, namespace, kubeconfig, clock_offset_s=offset_s)
            stack.callback(made.end)
            return made

        def leads_for_long(leader: Candidate, standby: Candidate, offset_s: float) -> None:
            """For longer than a lease lasts, by a clock that is as wrong as it was to be."""
            until(lambda: standby.get("/readyz").json() == {"status": "standby"}, what=f"{standby} does not stand by")
            renewed = lease(api_server, namespace)["spec"]["renewTime"]
            off_s = (datetime.fromisoformat(renewed) - datetime.now(UTC)).total_seconds()
            assert abs(off_s - offset_s) < HOUR_S / 2
            versions: set[str] = set()

            def longer_than_it_lasts() -> bool:
                versions.add(lease(api_server, namespace)["metadata"]["resourceVersion"])
                return len(versions) > LEASE_S / Timing().renew_s + 1

            until(longer_than_it_lasts, timeout_s=60.0, every_s=0.2, what="the leader does not renew its lease")
            assert leader.leads and not standby.events_of("leads")
            assert len(leader.events_of("leads")) == 1

        first = candidate("first", HOUR_S)
        until(lambda: first.leads, what="the first does not lead")
        second = candidate("second", -HOUR_S)
        leads_for_long(first, second, HOUR_S)

        first.send(signal.SIGTERM)
        until(lambda: second.leads, timeout_s=60.0, what="nobody takes over")
        assert first.at("stops") <= second.at("leads")
        assert lease(api_server, namespace)["spec"]["leaseTransitions"] == 1, "taken over once"

        third = candidate("third", HOUR_S)
        leads_for_long(second, third, -HOUR_S)
        killed_at = time.monotonic()
        second.send(signal.SIGKILL)
        until(lambda: third.leads, timeout_s=60.0, what="nobody takes over")
        # Not before the second, had it only been cut off, would have given up by itself; nor an hour later.
        assert third.at("leads") - killed_at > LEASE_S - Timing().give_up_s
        assert third.looks(killed_at) <= PATIENT
        assert [len(each.events_of("leads")) for each in (first, second, third)] == [1, 1, 1]


@pytest.mark.parametrize("fault", ["kill", "pause", "store"])
def test_without_an_api_server_nobody_leads_and_somebody_does_when_it_is_back(
    api_server: ControlPlane, pair: tuple[Candidate, Candidate], fault: str
) -> None:
    first, second = pair
    before = first.last("serves") or {}
    away_at = time.monotonic()
    if fault == "store":  # what is asked takes too long, and ends with 500
        freeze(api_server.daemons["etcd"])
    else:
        getattr(api_server, fault)()
    try:
        until(lambda: not first.leads, timeout_s=60.0, what="a leader that can't renew goes on")
        took_s = first.at("stops") - away_at
        figure("a leader gives up", took_s)
        assert took_s < LEASE_S, "it goes on when others may begin"
        until(lambda: second.get("/v1/status").status_code == 503, what="the leader that was is still named")
        answer = first.get("/v1/status")
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert first.process.poll() is None and second.process.poll() is None
        assert not second.leads
    finally:
        match fault:
            case "kill":
                api_server.start()
            case "pause":
                api_server.go_on()
            case "store":
                api_server.daemons["etcd"].send_signal(signal.SIGCONT)
    until(lambda: first.leads or second.leads, what="nobody leads again")
    now = next(each for each in pair if each.leads)
    assert (now.last("serves") or {})["epoch"] > before["epoch"]
    other = next(each for each in pair if each is not now)
    until(lambda: other.get("/v1/status").headers.get("location") == now.url, what="the standby does not say where")


def test_a_leader_that_was_frozen_finds_itself_deposed_and_stands_by(pair: tuple[Candidate, Candidate]) -> None:
    first, second = pair
    first.send(signal.SIGSTOP)
    until(lambda: second.leads, timeout_s=60.0, what="nobody takes over")
    first.send(signal.SIGCONT)
    until(lambda: not first.leads, what="the deposed one goes on")
    until(lambda: first.get("/v1/status").headers.get("location") == second.url, what="it does not say who leads")
    assert first.process.poll() is None, "it stands by"
    assert second.leads
    second.send(signal.SIGTERM)
    until(lambda: first.leads, what="it does not lead again")


def test_hands_that_change_the_lease_do_not_move_it(
    api_server: ControlPlane, namespace: str, pair: tuple[Candidate, Candidate]
) -> None:
    first, second = pair
    holder = lease(api_server, namespace)["spec"]["holderIdentity"]
    began, number = time.monotonic(), 0
    while time.monotonic() < began + 5:  # more than two renewals
        number += 1
        api_server.kubectl(
            "annotate", "lease", f"{RELEASE}-controller", f"--namespace={namespace}", "--overwrite", f"n={number}"
        )
    api_server.kubectl("delete", "lease", f"{RELEASE}-controller", f"--namespace={namespace}")
    api_server.until_there("kube-apiserver", f"lease/{RELEASE}-controller", f"--namespace={namespace}")
    assert lease(api_server, namespace)["spec"]["holderIdentity"] == holder
    assert first.leads and not second.leads
    assert len([each for each in first.events if each["event"] == "leads"]) == 1


def test_a_leader_that_loses_its_permission_stops_and_says_which(
    api_server: ControlPlane, namespace: str, pair: tuple[Candidate, Candidate]
) -> None:
    first, second = pair
    api_server.kubectl("delete", "rolebinding", "serving-controller", f"--namespace={namespace}")
    until(lambda: not first.leads, what="it goes on")
    assert not second.leads
    assert "patch lease serving-controller" in first.log.read_text()
    permissions(api_server, namespace)
    until(lambda: first.leads or second.leads, what="nobody leads again")


def test_an_api_server_that_has_too_much_to_do(
    api_server: ControlPlane, namespace: str, kubeconfig: Path, pair: tuple[Candidate, Candidate]
) -> None:
    first, _ = pair
    kept, pauses = kubernetes_lease(kubeconfig, namespace), []

    def ask() -> None:
        try:
            kept.read()
        except Unavailable as error:  # late answers are part of the crowd
            if isinstance(error, Busy):
                pauses.append(error.retry_after_s)

    with crowded(api_server, namespace, ask):
        until(lambda: "HTTP status 429" in first.log.read_text(), timeout_s=60, what="it serves all the same")
        until(lambda: any(each > 0 for each in pauses), timeout_s=60, what="no pause was asked for")
    until(lambda: any(each.leads for each in pair), what="nobody leads")
    assert all(each.process.poll() is None for each in pair)


# The Lease itself.


def kubernetes_lease(kubeconfig: Path, namespace: str, **settings: Any) -> KubernetesLease:
    configuration = configured(kubeconfig)
    return KubernetesLease(configuration, namespace=namespace, name=f"{RELEASE}-controller", **settings)


def test_of_two_writes_to_a_lease_one_wins(namespace: str, kubeconfig: Path) -> None:
    kept = kubernetes_lease(kubeconfig, namespace)
    assert kept.read() is None
    made = kept.create(holder="a", address="http://a:1", lease_s=10)
    with pytest.raises(Conflict):
        kept.create(holder="b", address="http://b:1", lease_s=10)
    renewed = kept.write(made, holder="a", address="http://a:1", lease_s=10)
    assert renewed.mark != made.mark and renewed.transitions == made.transitions
    with pytest.raises(Conflict):
        kept.write(made, holder="b", address="http://b:1", lease_s=10)
    assert kept.read() == renewed
    taken = kept.write(renewed, holder="b", address="http://b:1", lease_s=10)
    assert (taken.holder, taken.address, taken.transitions) == ("b", "http://b:1", 1)
    given_back = kept.write(taken, holder="", address="", lease_s=10)
    assert (given_back.holder, given_back.address) == ("", "")


def test_a_lease_goes_with_its_owner(api_server: ControlPlane, namespace: str) -> None:
    name = f"{RELEASE}-controller"
    api_server.kubectl("create", "deployment", name, f"--namespace={namespace}", "--image=x", "--replicas=0")
    configuration = configured(api_server.kubeconfig)
    owner = owner_of(configuration, namespace=namespace, deployment=name)
    kept = kubernetes_lease(api_server.kubeconfig, namespace, owner=owner, labels={"app.kubernetes.io/instance": "x"})
    kept.create(holder="a", address="http://a:1", lease_s=10)
    api_server.kubectl("delete", "deployment", name, f"--namespace={namespace}")
    until(lambda: kept.read() is None, timeout_s=60, what="the lease is left over")


def test_a_lease_on_an_api_server_that_does_not_answer(
    api_server: ControlPlane, namespace: str, kubeconfig: Path
) -> None:
    kept = kubernetes_lease(kubeconfig, namespace, timeout_s=0.5)
    api_server.pause()
    try:
        with pytest.raises(Unavailable, match="does not answer"):
            kept.read()
    finally:
        api_server.go_on()
