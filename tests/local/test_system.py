"""A system's definition: what is accepted, and what a wrong one is told."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from controlplane.core.errors import Conflict, ControlPlaneError
from controlplane.core.models import Goal
from controlplane.local import processes, supervisor
from controlplane.local.changes import changes
from controlplane.local.home import Home
from controlplane.local.supervisor import Supervisor, owned, owner
from controlplane.local.system import System, load_system, read_system, save_system
from tests.waiting import until


def read(tmp_path: Path, text: str) -> System:
    file = tmp_path / "system.yaml"
    file.write_text(text)
    return read_system(file, Home(tmp_path / "home"))


def test_without_a_file_there_is_one_fleet_and_a_directory_registry(tmp_path: Path) -> None:
    system = read_system(None, Home(tmp_path))
    assert system.registry == str(tmp_path / "registry")
    assert [fleet.name for fleet in system.fleets] == ["default"]


def test_a_relative_registry_is_relative_to_the_file(tmp_path: Path) -> None:
    system = read(tmp_path, "registry: ./models\nfleets: [{name: cpu, replicas: 2, memory_bytes: 512Mi}]")
    assert system.registry == str(tmp_path / "models")
    assert system.fleets[0].shape().memory_bytes == 512 << 20


def test_an_s3_registry_stays_as_it_is(tmp_path: Path) -> None:
    assert read(tmp_path, "registry: s3://bucket/prefix").registry == "s3://bucket/prefix"


def test_it_is_found_again(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.prepare()
    system = read(tmp_path, "fleets: [{name: cpu}]\ncontroller: {drain_s: 1}")
    save_system(system, home)
    assert load_system(home) == system


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("fleets: [{name: ../x}]", "fleets[0].name", id="a name that leaves the folder"),
        pytest.param("fleets: []", "there is no fleet", id="no fleet"),
        pytest.param("fleets: [{name: a}, {name: a}]", "twice", id="a name twice"),
        pytest.param("fleets: [{name: a, default: true}, {name: b, default: true}]", "default", id="two defaults"),
        pytest.param("fleets: [{name: a, memory_bytes: lots}]", "512Mi", id="a size that is none"),
        pytest.param("fleets: [{name: a, scaling: {idle_s: 5m}}]", "idle_s: '5m' is no number of seconds", id="a unit"),
        pytest.param("fleets: [{name: a, scaling: {share: 99}}]", "for 99 % write 0.99", id="per cent"),
        pytest.param("fleets: [{name: a, scaling: {share: 1}}]", "a part of 1: such as 0.99", id="all of it"),
        pytest.param("fleets: [{name: a, replica: 2}]", "did you mean `replicas`?", id="an unknown setting"),
        pytest.param(
            "fleets:\n- {name: a}\n- {name: b,\n   memry_bytes: 1Gi}", "no such field (line 4)", id="its line"
        ),
        pytest.param("fleet: []", "fleet: there is no such field (line 1)", id="an unknown section"),
        pytest.param("controller: [1]", "poll_s", id="a section that is a list"),
        pytest.param(
            "fleets: [{name: a, replicas: 2}, {name: b, replicas: {min: 2, max: 3}}]\ncontroller: {max_replicas: 3}",
            "controller.max_replicas",
            id="a budget that is less than what must be",
        ),
        pytest.param(
            "fleets: [{name: a, replicas: 2, gpus: 2}]\ncontroller: {max_gpus: 3}",
            "controller.max_gpus",
            id="fewer GPUs than must be",
        ),
        pytest.param(
            "fleets: [{name: a, replicas: {max: 9}, scaling: {schedule: [{begins: '8:00', ends: '9:00', min: 5}]}}]\n"
            "controller: {max_replicas: 3}",
            "fleets[0].scaling.schedule[0].min: at least 5 replicas take more than the 3 replicas",
            id="a budget that is less than what a schedule asks for",
        ),
        pytest.param(
            "fleets: [{name: a, replicas: {min: 0, max: 2}, gpus: 8}]\ncontroller: {max_gpus: 4}",
            "fleets[0].gpus: a replica takes more than the 4 GPUs",
            id="a budget that is less than one replica",
        ),
        pytest.param("fleets: [{name: a, replicas: -1}]", "fleets[0].replicas", id="a negative count"),
        pytest.param("fleets: [{name: a, replicas: {min: 3, max: 2}}]", "let min be no more", id="min above max"),
        pytest.param("fleets: [{name: a, replicas: true}]", "fleets[0].replicas", id="a truth for a count"),
        pytest.param("fleets: [{name: a, replicas: two}]", "limits such as {min: 0, max: 4} (line 1)", id="a word"),
        pytest.param("fleets: [{name: a, replicas: {min: 3}}]", "fleets[0].replicas.max", id="no upper limit"),
        pytest.param(
            "fleets: [{name: a, scaling: {queue_ms: 5, latency_ms: 9}}]", "one alone can be the goal", id="two goals"
        ),
        pytest.param(
            "fleets: [{name: a, scaling: {queue_ms: 0}}]", "fleets[0].scaling.queue_ms", id="a goal of nothing"
        ),
        pytest.param("fleets: [{name: a, scaling: {share: 99}}]", "fleets[0].scaling.share", id="a share above one"),
        *(
            pytest.param(f"fleets: [{{name: a, scaling: {{schedule: [{{{window}}}]}}}}]", said, id=said)
            for window, said in (
                ("begins: '8:00', ends: '18:00'", "it changes nothing"),
                ("begins: '8:00', ends: '25:00', max: 2", "'25:00' is no time of the day"),
                ("begins: '8:00', ends: '9:00', max: 2, days: [someday]", "'someday' is no day"),
                ("begins: '8:00', ends: '9:00', max: 2, timezone: Mars/Base", "'Mars/Base' is no time zone"),
                ("begins: '8:00', ends: '9:00', min: 2", "at least 2 and at most 1"),
                ("begins: '8:00', ends: '9:00', min: 3, max: 2", "let min be no more than max"),
                ("begins: 8:00, ends: '9:00', min: 1", "in quotes"),
            )
        ),
        pytest.param("controller: {port: 99999}", "controller.port", id="a port that is none"),
        pytest.param("fleets: [", "line 1", id="broken YAML"),
        pytest.param("- 1", "system.yaml", id="a list"),
    ],
)
def test_a_wrong_definition_is_told_where(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ControlPlaneError) as caught:
        read(tmp_path, text)
    assert caught.value.code == "INVALID"
    assert said in str(caught.value)


def test_what_a_fleet_is_scaled_for(tmp_path: Path) -> None:
    text = """
fleets:
- name: a
  replicas: {min: 0, max: 6}
  scaling:
    latency_ms: 250
    share: 0.95
    idle_s: 60
    schedule: [{days: [mon, fri], begins: "22:30", ends: "6:00", timezone: Europe/Berlin, min: 2}]
- {name: b, replicas: 3}
- {name: c}
"""
    first, second, third = (each.shape() for each in read(tmp_path, text).fleets)
    assert (first.min_replicas, first.max_replicas, first.idle_s) == (0, 6, 60)
    assert first.goal == Goal(latency_ms=250, share=0.95)
    (window,) = first.schedule
    assert (window.days, window.begins_min, window.ends_min) == ((0, 4), 22 * 60 + 30, 6 * 60)
    assert (second.min_replicas, second.max_replicas) == (3, 3)
    assert (third.min_replicas, third.max_replicas, third.goal) == (1, 1, Goal(queue_ms=100))


def test_what_is_different_is_told_as_it_is_written(tmp_path: Path) -> None:
    plain = read(tmp_path, "fleets: [{name: a, replicas: {max: 3}}]")
    window = "{days: [mon], begins: '8:00', ends: '9:00', min: 2}"
    planned = read(tmp_path, f"fleets: [{{name: a, replicas: {{max: 3}}, scaling: {{schedule: [{window}]}}}}]")
    (told,) = changes(plain, planned)
    assert str(told).startswith("fleets[a].scaling.schedule: [] → [{days: [mon], begins: ")
    assert "none" not in str(told).lower()


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ControlPlaneError, match=r"system\.yaml can't be read"):
        read_system(tmp_path / "system.yaml", Home(tmp_path))


def test_a_home_has_one_owner(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with owned(home):
        assert owner(home) is not None
        with pytest.raises(Conflict, match="ctl down"), owned(home):
            pass
    assert owner(home) is None


def test_a_part_that_can_not_be_started_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever can't get a process just now must not end those that serve."""
    home = Home(tmp_path / "home")
    home.prepare()
    owner_of_it = Supervisor(home, was_ready=True)

    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    with monkeypatch.context() as patched:
        patched.setattr(processes, "start", refuse)
        news = owner_of_it.look()
        assert [each.split(" (")[0] for each in news] == [
            f"the {name} can't be started" for name in ("controller", "gateway")
        ]
        assert owner_of_it.look() == [], "not at once"
    started: list[object] = []

    def start(*_: object, **__: object) -> tuple[None, None]:
        started.append(1)
        return None, None

    monkeypatch.setattr(processes, "start", start)
    until(lambda: owner_of_it.look() or len(started) >= 2)


def test_logs_that_have_grown_are_put_aside_while_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LOG_BYTES", 1000)
    home = Home(tmp_path / "home")
    home.prepare()
    with (home.logs / "controller.log").open("ab", buffering=0) as log, (home.logs / "small.log").open("ab") as small:
        small.write(b"few words")
        log.write(b"x" * 1001)
        Supervisor(home, parts=[]).look()
        log.write(b"goes on")
    assert (home.logs / "controller.log").read_bytes() == b"goes on"
    assert (home.logs / "controller.log.1").read_bytes() == b"x" * 1001
    assert (home.logs / "small.log").read_bytes() == b"few words"
