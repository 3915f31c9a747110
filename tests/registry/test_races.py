"""Writers in separate processes at once: no change is lost, one promotion wins and the others are told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from controlplane.core.errors import STATUS, Conflict
from controlplane.core.models import Capabilities, FleetRecord, FleetShape, History
from controlplane.registry import Registry
from tests.registry.entries import register

HISTORY = History(first=7, most=(None, 2.5), believed="yesterday", moved=-0.5)

# A process prints "ready", waits for a line, and does its part.
COMMON = """
import sys
import structlog
from controlplane.core.errors import ControlPlaneError
from controlplane.registry import open_registry
url, number, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # a retry is told there
registry = open_registry(url)
registry.epoch()
print("ready", flush=True)
sys.stdin.readline()
try:
    result = work(registry, number, folder)
    print(result, flush=True)
except ControlPlaneError as error:
    print(error.code, flush=True)
"""


def race(url: str, folder: Path, work: str, processes: int) -> list[str]:
    """Have several processes do `work(registry, number, folder)` at once; what each printed."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", work + COMMON, url, str(number), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    try:
        for each in started:
            assert each.stdout is not None
            assert each.stdout.readline() == "ready\n"
        for each in started:
            assert each.stdin is not None
            each.stdin.write("go\n")
            each.stdin.flush()
        return [each.communicate(timeout=120)[0].strip() for each in started]
    finally:
        for each in started:
            each.kill()
            each.wait()


def test_of_several_promotions_at_once_one_wins(registry: Registry, url: str, tmp_path: Path) -> None:
    for number in range(4):
        register(registry, tmp_path, content=str(number))
    work = "def work(registry, number, folder): return registry.promote('m', 1 + number, actor=str(number)).id"
    for _ in range(3):
        said = race(url, tmp_path, work, 4)
        winners = [each for each in said if each not in STATUS]
        assert len(winners) == 1, said
        assert said.count(Conflict.code) == 3
        running = registry.model("m").running_rollout
        assert running is not None
        assert running.id == winners[0]
        registry.rollback("m", actor="test")
    promotions = [item for item in registry.history("m", 1000) if item.action == "promote"]
    assert len(promotions) == 3


REGISTER = """
def work(registry, number, folder):
    from pathlib import Path
    from controlplane.core.entry import Entry
    made = []
    for turn in range(5):
        files = {"model.onnx": Path(folder) / f"{number % 2}-{turn}"}
        made.append(registry.register(Entry(name="m", backend="onnxruntime"), files, actor=str(number)).version)
    return made
"""


def test_registrations_at_once_all_count(registry: Registry, url: str, tmp_path: Path) -> None:
    """Four processes register ten versions, each of them twice."""
    for number in range(2):
        for turn in range(5):
            (tmp_path / f"{number}-{turn}").write_text(f"{number} {turn}")
    made = [json.loads(each) for each in race(url, tmp_path, REGISTER, 4)]
    model = registry.model("m")
    assert [each.number for each in model.versions] == list(range(1, 11))
    assert len({each.digest for each in model.versions}) == 10
    assert made[0] == made[2]
    assert made[1] == made[3]
    assert sorted(made[0] + made[1]) == list(range(1, 11))
    assert sum(item.action == "register" for item in registry.history("m", 1000)) == 10


FLEET = """
def work(registry, number, folder):
    from dataclasses import replace
    for turn in range(10):
        registry.update_fleet("f", lambda record: replace(record, measured_bytes={
            **record.measured_bytes, f"{number}-{turn}": number}))
"""


def test_no_change_of_a_record_is_lost(registry: Registry, url: str, tmp_path: Path) -> None:
    shape = FleetShape(name="f")
    capabilities = Capabilities(server_version="2.51.0", backends=("python",))
    registry.update_fleet("f", lambda _: FleetRecord(shape=shape, capabilities=capabilities, history=HISTORY))
    race(url, tmp_path, FLEET, 4)
    record = registry.fleet("f")
    assert record.history == HISTORY
    assert record.measured_bytes == {f"{number}-{turn}": number for number in range(4) for turn in range(10)}
    assert record.capabilities == capabilities


def test_each_take_over_has_its_own_epoch(registry: Registry, url: str, tmp_path: Path) -> None:
    work = "def work(registry, number, folder): return [registry.claim('here') for _ in range(5)]"
    said = [json.loads(each) for each in race(url, tmp_path, work, 4)]
    assert sorted(epoch for epochs in said for epoch in epochs) == list(range(1, 21))
    assert registry.epoch() == 20
    assert race(url, tmp_path, "def work(registry, number, folder): return registry.claim('there')", 1) == ["CONFLICT"]
