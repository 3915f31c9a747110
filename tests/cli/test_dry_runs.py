"""What `ctl up` and `ctl down` would do, and that they do not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from controlplane.cli.up import gateway_settings
from controlplane.core.errors import InvalidEntry
from controlplane.local import processes
from controlplane.local.home import Home
from controlplane.local.supervisor import owned
from controlplane.local.system import System
from tests.cli.conftest import Ctl
from tests.standins import nvidia_smi

SYSTEM = """
registry: models
fleets: [{name: cpu, replicas: {min: 1, max: 3}}, {name: gpu, gpus: 2, memory_bytes: 8 GiB}]
gateway: {grpc_port: 9001, http_port: 0}
"""


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_what_would_be_started_is_shown_and_nothing_is(ctl: Ctl, home: Home, tmp_path: Path) -> None:
    (tmp_path / "system.yaml").write_text(SYSTEM)
    before = files(tmp_path)
    shown = ctl("up", "-f", "system.yaml", "--dry-run")
    assert shown.status == 0, shown.err
    for text in (str(tmp_path / "models"), "fleet cpu", "1 to 3 replicas", "8.0 GiB", "2 GPUs", "gRPC port 9001"):
        assert text in shown.out
    assert "nothing was changed" in shown.err
    assert ctl("up", "-d", "--dry-run").status == 0
    assert files(tmp_path) == before
    assert not list(processes.of_home(home.root))


def test_gpus_that_are_not_there_are_told(ctl: Ctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "system.yaml").write_text(SYSTEM)
    nvidia_smi(tmp_path, monkeypatch, "echo 'GPU 0: one (UUID: x)'")
    shown = ctl("up", "-f", "system.yaml", "--dry-run")
    assert shown.status == 0 and "2 GPUs are asked for by a replica, and nvidia-smi lists 1" in shown.err


@pytest.mark.parametrize(
    ("definition", "field"),
    [
        ("fleets: []", "fleets"),
        ("gateway: {grpc_port: 9, http_port: 9}", "system.yaml\n  gateway.http_port"),
        ("gateway: {max_heap_bytes: 0Mi}", "gateway.max_heap_bytes: 0 should be greater than 0 (line 1)"),
        ("gateway: {max_heap_bytes: much}", "'much' is no size (line 1)"),
        ("gateway: {no_such: 1}", "gateway.no_such: there is no such field (line 1)"),
        ("fleets: [{name: a}]\ngateway:\n  grpc_port: 99999", "less than or equal to 65535 (line 3)"),
        ("gateway: {grpcport: 1}", "did you mean `grpc_port`?"),
        ("registry: s3://UPPER/x", "registry"),
    ],
)
def test_a_wrong_definition_is_refused(ctl: Ctl, tmp_path: Path, definition: str, field: str) -> None:
    (tmp_path / "system.yaml").write_text(definition)
    refused = ctl("up", "-f", "system.yaml", "--dry-run")
    assert (refused.status, refused.out) == (2, "")
    assert field in refused.err


def test_sizes_of_the_gateway_may_have_units() -> None:
    settings = gateway_settings(System(registry="r", gateway={"max_heap_bytes": "2Gi", "held_bytes": 5, "name": "1Gi"}))
    assert (settings.max_heap_bytes, settings.held_bytes, settings.name) == (2 << 30, 5, "1Gi")


def test_a_definition_that_is_gone_meanwhile_is_told_of_without_its_lines(tmp_path: Path) -> None:
    system = System(registry="r", gateway={"grpc_port": -1})
    for gone in (tmp_path / "gone.yaml", tmp_path):
        with pytest.raises(InvalidEntry, match=r"-1 should be greater than or equal to 0$"):
            gateway_settings(system, gone)


def test_a_home_in_use_is_refused_and_what_runs_there_is_shown(ctl: Ctl, home: Home) -> None:
    assert "nothing is running" in ctl("down", "--dry-run").err
    child, _ = processes.start(
        ["sleep", "600"], home=home.root, log_file=home.logs / "sleep.log", environment=dict(os.environ)
    )
    try:
        with owned(home):
            assert ctl("up", "--dry-run").status == 5
            shown = ctl("down", "--dry-run")
        assert shown.status == 0
        assert shown.out.splitlines()[1].split() == [str(child.pid), "sleep"]
        assert child.poll() is None, "it goes on"
    finally:
        child.kill()
        child.wait(10)


def test_whoever_owns_the_home_is_named(ctl: Ctl, home: Home) -> None:
    home.prepare()
    code = (
        "import sys\nfrom pathlib import Path\nfrom controlplane.local.home import Home\n"
        "from controlplane.local.supervisor import owned\n"
        "with owned(Home(Path(sys.argv[1]))):\n    print('owned', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(home.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "owned\n"
        assert f"{process.pid}".ljust(7) in ctl("down", "--dry-run").out
        assert "ctl up" in ctl("down", "--dry-run").out
        process.communicate("", timeout=20)
