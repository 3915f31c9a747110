"""What a fleet knows while the API server is away, and how it goes on when a watch can not."""

from __future__ import annotations

import asyncio
import copy
import threading
from functools import wraps
from typing import Any

import pytest
from kubernetes.client import CoreV1Api
from structlog.testing import capture_logs

from controlplane.core.errors import Unavailable
from controlplane.fleet import informer
from controlplane.fleet.cluster import client_of, configured
from tests.fleet.contract import CPU, names
from tests.kubernetes.using_fleet import Made, make, true

__all__ = ["make"]


async def test_while_the_api_server_is_away_what_was_known_stays(make: Made) -> None:
    backend = await make()
    await backend.start(CPU, "cpu-0")
    before = await names(make, backend)
    make.cluster.kill()
    try:
        assert {each.name: each.fleet for each in await backend.list()} == before
        with pytest.raises(Unavailable, match=r"scaling Deployment serving-cpu to 2.*can't be reached"):
            await backend.start(CPU, "cpu-1")
    finally:
        make.cluster.start()
    await backend.start(CPU, "cpu-1")
    assert len(await names(make, backend)) == 2, "the watch goes on"


async def test_a_watch_is_followed_past_its_bookmarks(make: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server sends one a little before each watch ends."""
    monkeypatch.setattr(informer, "WATCH_S", 4)
    core = CoreV1Api(client_of(configured(make.cluster.kubeconfig)))
    calls: list[str | None] = []

    @wraps(core.list_namespaced_pod)  # the client reads from it what it returns
    def listed(**options: Any) -> Any:
        calls.append(options.get("resource_version"))
        return core.list_namespaced_pod(**options)

    followed = informer.Informer("pods", listed, {"namespace": make.namespace}, lambda: None)
    followed.start()
    try:
        await true(lambda: len(calls) == 4)  # a list and three watches
        assert calls.count(None) == 1, "nothing is listed anew"
        make.kubectl("run", "late", "--image=none:none")
        await true(lambda: "late" in followed.objects())
        assert followed.problem is None
    finally:
        followed.stop()


async def test_what_is_too_old_for_a_watch_is_listed_anew(make: Made) -> None:
    """The server answers 410 to who asks for what was before its cache begins, or before etcd was compacted."""
    make.cluster.kill()
    make.cluster.start()
    core = CoreV1Api(client_of(configured(make.cluster.kubeconfig)))
    calls: list[str | None] = []

    @wraps(core.list_namespaced_pod)  # the client reads from it what it returns
    def listed(**options: Any) -> Any:
        calls.append(options.get("resource_version"))
        if len(calls) == 2:
            options["resource_version"] = "1"
        return core.list_namespaced_pod(**options)

    followed = informer.Informer("pods", listed, {"namespace": make.namespace}, lambda: None)
    followed.start()
    try:
        await true(lambda: len(calls) == 4)  # list, watch, list, watch
        assert [each is None for each in calls] == [True, False, True, False]
        make.kubectl("run", "late", "--image=none:none")
        await true(lambda: "late" in followed.objects())
        assert followed.problem is None
    finally:
        followed.stop()


async def test_a_fleet_that_was_away_when_etcd_was_compacted_goes_on(
    make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between one watch and the next: no history is left that would lead from what it knows to the present."""
    monkeypatch.setattr(informer, "WATCH_S", 1)
    list_pods = CoreV1Api.list_namespaced_pod
    away, back = threading.Event(), threading.Event()
    versions: list[int] = []

    @wraps(list_pods)
    def held(api: CoreV1Api, *arguments: Any, **options: Any) -> Any:
        if options.get("watch") and away.is_set() and not back.is_set():
            versions.append(int(options["resource_version"]))
            assert back.wait(120)
        return list_pods(api, *arguments, **options)

    monkeypatch.setattr(CoreV1Api, "list_namespaced_pod", held)
    backend = await make()
    away.set()
    await true(lambda: len(versions) == 2)  # of pods, and of gateways' pods
    with capture_logs() as logs:
        make.kubectl("scale", "deployment/serving-cpu", "--replicas=1")
        await true(lambda: len(make.pods()) == 1)
        assert make.cluster.compact() > max(versions)
        make.cluster.kill()
        make.cluster.start()
        back.set()
        assert list((await names(make, backend)).values()) == ["cpu"]
        await true(lambda: len([each for each in logs if "the watch is too old" in each["event"]]) >= 2)
    make.kubectl("scale", "deployment/serving-cpu", "--replicas=2")
    assert list((await names(make, backend)).values()) == ["cpu", "cpu"], "the same backend hears what comes next"


async def test_everything_is_listed_anew_from_time_to_time(make: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the watch has told, or has not."""
    monkeypatch.setattr(informer, "WATCH_S", 1)
    monkeypatch.setattr(informer, "RESYNC_S", 2.0)
    backend = await make()
    await backend.start(CPU, "cpu-0")
    (name,) = await names(make, backend)
    ghost = copy.deepcopy(backend._pods.objects()[name])
    ghost.metadata.name = "ghost"
    backend._pods.put(ghost)
    await true(lambda: {each.name for each in asyncio.run(backend.list())} == {name})
    assert backend._pods.problem is None
