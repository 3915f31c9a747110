"""`ctl reload`: other settings for a system that runs, while it serves."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from controlplane.local.changes import Change, changes
from controlplane.local.system import read_system
from tests.e2e.system import Load, System, eventually

DEFINITION = "fleets: [{name: cpu, replicas: 1, memory_bytes: 1Gi}]"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    system = System(tmp_path_factory.mktemp("reload"), DEFINITION)
    try:
        system.up()
        system.serve("m")
        yield system
    finally:
        system.down()


def changed(system: System, *, controller: dict[str, object] | None = None, **fleet: object) -> str:
    """A file like the one that it was started with, but for this."""
    text = system.write_definition().read_text()
    data = yaml.safe_load(text)
    data["fleets"][0] |= fleet
    data["controller"] |= controller or {}
    (system.folder / "changed.yaml").write_text(yaml.safe_dump(data))
    return str(system.folder / "changed.yaml")


def epoch(system: System) -> int:
    return int(system.told("/v1/status")["epoch"])


def test_a_fleet_gets_other_limits_while_it_serves(system: System) -> None:
    before = epoch(system)
    file = changed(system, replicas={"min": 2, "max": 3}, scaling={"queue_ms": 50})
    dry = system.ok("reload", "-f", file, "--dry-run")
    assert "fleets[cpu].replicas.min: 1 → 2" in dry.out and "would be taken over" in dry.err
    assert epoch(system) == before
    with Load(system.client, "m") as load:
        done = system.ok("reload", "-f", file)
        assert done.out.splitlines() == [
            "fleets[cpu].replicas.max: 1 → 3",
            "fleets[cpu].replicas.min: 1 → 2",
            "fleets[cpu].scaling.queue_ms: none → 50.0",
        ]
        assert epoch(system) > before
        eventually(lambda: system.holders("m", 1) == {"cpu-0", "cpu-1"}, 120, "the second replica")
        load.more(100)
    assert not load.failures
    again = system.ok("reload", "-f", file)
    assert (again.out, "nothing is different" in again.err) == ("", True)


def test_what_needs_other_processes_is_refused_and_changes_nothing(system: System) -> None:
    before, kept = epoch(system), system.home.system_file.read_text()
    done = system.ctl("reload", "-f", changed(system, disk_bytes="3Gi", name="other"))
    assert done.status == 2 and "fleets[cpu]: a fleet that runs can't be left out" in done.err
    done = system.ctl("reload", "-f", changed(system, replicas=3, disk_bytes="3Gi"))
    assert done.status == 2 and "fleets[cpu].disk_bytes" in done.err and "ctl down" in done.err
    done = system.ctl("reload", "-f", changed(system, replicas=-1))
    assert done.status == 2 and "fleets[0].replicas" in done.err
    assert (epoch(system), system.home.system_file.read_text()) == (before, kept)


def test_a_controller_that_can_not_run_with_it_goes_on_as_before(system: System) -> None:
    kept = system.home.system_file.read_text()
    with socket.create_server(("127.0.0.1", 0)) as taken, Load(system.client, "m") as load:
        file = changed(system, controller={"port": taken.getsockname()[1]}, replicas=2)
        done = system.ctl("reload", "-f", file, "--timeout", "20")
        assert done.status == 3, done.err
        assert "what was defined before holds again" in done.err and str(taken.getsockname()[1]) in done.err
        assert system.home.system_file.read_text() == kept
        eventually(lambda: (system.told_if_there("/v1/status") or {}).get("settled"), 120, "no controller is there")
        load.more(100)
    assert not load.failures


def test_without_a_system_that_runs_it_says_what_to_do(tmp_path: Path) -> None:
    system = System(tmp_path, DEFINITION)
    file = str(system.write_definition())
    done = system.ctl("reload", "-f", file)
    assert done.status != 0 and "ctl up" in done.err


def test_what_is_different_between_two_definitions(tmp_path: Path, system: System) -> None:
    def read(text: str) -> list[Change]:
        (tmp_path / "system.yaml").write_text(text)
        return changes(one, read_system(tmp_path / "system.yaml", system.home))

    (tmp_path / "system.yaml").write_text("fleets: [{name: a, gpus: 1}, {name: b}]\ngateway: {grpc_port: 1}")
    one = read_system(tmp_path / "system.yaml", system.home)
    found = read("fleets: [{name: c}, {name: a, gpus: 2, min_loaded: 1}]\ngateway: {grpc_port: 2}\nregistry: s3://b/p")
    told = {each.setting: str(each.problem) for each in found}
    assert told.keys() == {
        "fleets[a].gpus",
        "fleets[a].min_loaded",
        "fleets[b]",
        "fleets[c]",
        "gateway.grpc_port",
        "registry",
    }
    assert {setting for setting, problem in told.items() if problem == "None"} == {"fleets[a].min_loaded", "fleets[c]"}
