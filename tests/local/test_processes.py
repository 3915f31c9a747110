"""Processes are found again by whoever comes next, and ended with all that they started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from controlplane.local import processes
from controlplane.local.home import Home
from tests.waiting import until

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
PARENT = [
    sys.executable,
    "-c",
    "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
    "time.sleep(600)",
]


def start(home: Path, command: list[str], **options: Path) -> processes.ProcessRecord:
    _, record = processes.start(
        command, home=home, log_file=home / "log", environment={"PATH": os.environ["PATH"]}, **options
    )
    return record


def test_many_files_may_be_open() -> None:
    code = (
        "import resource; from controlplane.local import processes;"
        "most = resource.getrlimit(resource.RLIMIT_NOFILE)[1];"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, most));"
        "processes.allow_open_files();"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 1024


def test_a_process_is_recognised_from_its_record(tmp_path: Path) -> None:
    record = start(tmp_path, SLEEPER, record_file=tmp_path / "record.json")
    found = processes.read_record(tmp_path / "record.json")
    assert found == record
    process = found.process()
    assert process is not None and process.pid == record.pid
    processes.stop(process, grace_s=5)
    assert found.process() is None


def test_another_process_with_the_same_id_is_not_taken_for_it() -> None:
    assert processes.ProcessRecord(pid=os.getpid(), started_at=1.0).process() is None


def test_a_sweep_ends_children_and_removes_shared_memory(tmp_path: Path) -> None:
    start(tmp_path, PARENT)
    until(lambda: len(list(processes.of_home(tmp_path))) == 2)
    region = Path("/dev/shm") / (processes.shared_memory_prefix(tmp_path, "cpu-0") + "_region")
    region.write_bytes(b"x")
    others = Path("/dev/shm") / f"ctl_of_somebody_else_{tmp_path.name}_{os.getpid()}"
    others.write_bytes(b"x")
    try:
        assert processes.sweep(tmp_path) == 2
        assert not list(processes.of_home(tmp_path))
        assert not region.exists()
        assert others.exists()
    finally:
        others.unlink()


def test_a_sweep_leaves_other_homes_alone(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    kept = start(other, SLEEPER)
    start(one, SLEEPER)
    processes.sweep(one)
    assert kept.process() is not None
    processes.sweep(other)


def test_stop_kills_what_does_not_listen(tmp_path: Path) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    record = start(tmp_path, [sys.executable, "-c", deaf])
    until(lambda: "up" in (tmp_path / "log").read_text())
    process = record.process()
    assert process is not None
    processes.stop(process, grace_s=0.2)
    assert record.process() is None


def test_a_scrubbed_environment_holds_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    environment = processes.scrubbed_environment(tmp_path, {"PYTHONDONTWRITEBYTECODE": "1"})
    assert "AWS_SECRET_ACCESS_KEY" not in environment
    assert environment[processes.HOME_VARIABLE] == str(tmp_path)
    assert environment["PYTHONDONTWRITEBYTECODE"] == "1"


def test_free_ports_differ() -> None:
    assert len(set(processes.free_ports(8))) == 8


def test_a_home_is_closed_to_others(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.prepare()
    assert home.root.stat().st_mode & 0o077 == 0
    assert home.token_file.stat().st_mode & 0o777 == 0o600
    token = home.token_file.read_text()
    home.prepare()
    assert home.token_file.read_text() == token


def test_signals_do_not_reach_a_started_process_through_the_terminal(tmp_path: Path) -> None:
    record = start(tmp_path, SLEEPER)
    try:
        assert os.getsid(record.pid) == record.pid != os.getsid(0)
    finally:
        os.kill(record.pid, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(record.pid)], timeout=5)
