"""The Prometheus of a local system: ``python -m controlplane.metrics.program --home DIR``.

It runs the program that the system names, on a port of this machine, and keeps its configuration up to date: whenever
the controller or the gateway answers elsewhere, Prometheus reads a new one.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import psutil
import structlog
import yaml
from pydantic import TypeAdapter, ValidationError

from controlplane.client.access import read_access
from controlplane.core.errors import STATUS, ControlPlaneError, InvalidInput, Unavailable
from controlplane.local import processes
from controlplane.local.home import Home, replace_file
from controlplane.local.system import load_system
from controlplane.logs import configure

log = structlog.get_logger(__name__)

HOST = "127.0.0.1"
LOOK_S = 0.25
SCRAPE_INTERVAL_S = 2
RETENTION, RETENTION_SIZE = "6h", "512MB"
VERSION_TIMEOUT_S = 20.0
STOP_S = 8.0


def rules() -> str:
    """The recording rules, as Prometheus reads them."""
    return files("controlplane.metrics").joinpath("rules.yaml").read_text()


def configuration(*, controller_url: str, token_file: Path, gateway: str | None, interval_s: int) -> Mapping[str, Any]:
    """What Prometheus should do: scrape the replicas that the controller lists, the controller itself, and the
    gateway's own page (`host:port`; None: it has none yet)."""

    def token() -> dict[str, str]:
        # The type is no default in service discovery. Anew each time: YAML would say the second one by reference.
        return {"type": "Bearer", "credentials_file": str(token_file.resolve())}

    jobs: list[dict[str, Any]] = [
        {
            "job_name": "triton",
            "http_sd_configs": [
                {
                    "url": f"{controller_url}/v1/targets",
                    "refresh_interval": f"{interval_s}s",
                    "authorization": token(),
                }
            ],
        },
        {
            "job_name": "controller",
            "authorization": token(),
            "static_configs": [{"targets": [urlsplit(controller_url).netloc]}],
        },
    ]
    if gateway is not None:
        jobs.append({"job_name": "gateway", "static_configs": [{"targets": [gateway]}]})
    return {
        "global": {
            "scrape_interval": f"{interval_s}s",
            "scrape_timeout": f"{interval_s}s",
            "evaluation_interval": f"{interval_s}s",
        },
        "rule_files": ["rules.yaml"],
        "scrape_configs": jobs,
    }


class _Stopped(Exception):
    pass


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise _Stopped


def run(home: Home, program: str) -> None:
    """Run Prometheus until told to stop. Raises InvalidInput for a program that is none, Unavailable when it ends."""
    check(program)
    folder = home.prometheus
    folder.mkdir(exist_ok=True)
    record_file = folder / "process.json"
    left = processes.read_record(record_file)
    if left is not None and (old := left.process()) is not None:
        processes.stop(old, grace_s=STOP_S)  # its keeper was killed; two can't have one store
    replace_file(folder / "rules.yaml", rules())
    written = _await_configuration(home)
    port = _port(home)
    log_file = home.logs / "prometheus-server.log"
    command = [
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--storage.tsdb.retention.time={RETENTION}",
        f"--storage.tsdb.retention.size={RETENTION_SIZE}",
        f"--web.listen-address={HOST}:{port}",
        "--log.level=warn",
    ]
    popen, _ = processes.start(
        command,
        home=home.root,
        log_file=log_file,
        environment=processes.scrubbed_environment(home.root),
        record_file=record_file,
    )
    try:
        replace_file(home.prometheus_file, f"http://{HOST}:{port}\n")
        log.info("Prometheus started", url=f"http://{HOST}:{port}", program=program)
        while popen.poll() is None:
            wanted = _configuration(home)
            if wanted is not None and wanted != written:
                written = wanted
                _write(home, written)
                popen.send_signal(signal.SIGHUP)
            time.sleep(LOOK_S)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            processes.stop(psutil.Process(popen.pid), grace_s=STOP_S)
    home.prometheus_file.unlink(missing_ok=True)  # the port may be somebody else's: another one the next time
    raise Unavailable(f"Prometheus ended with {popen.returncode}: {_last_line(log_file)}", remedy=f"see {log_file}")


def check(program: str) -> None:
    """Raises InvalidInput for what is no Prometheus."""
    remedy = "give the path of a Prometheus, or `source: scrape`"
    if shutil.which(program) is None:
        raise InvalidInput(f"{program!r} can't be found any more", field="metrics.program", remedy=remedy)
    try:
        said = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=VERSION_TIMEOUT_S,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InvalidInput(f"{program} can't be run: {error}", field="metrics.program", remedy=remedy) from error
    if not said.startswith(b"prometheus, version"):
        raise InvalidInput(f"{program} is no Prometheus", field="metrics.program", remedy=remedy)


def _await_configuration(home: Home) -> Mapping[str, Any]:
    """Prometheus can begin when the controller has said where it is."""
    while (found := _configuration(home)) is None:
        time.sleep(LOOK_S)
    _write(home, found)
    return found


def _configuration(home: Home) -> Mapping[str, Any] | None:
    try:
        access = read_access(home.controller_file, home.token_file)
    except (Unavailable, ValidationError, OSError):
        return None
    try:
        ports = TypeAdapter(dict[str, Any]).validate_json((home.gateway / "ports.json").read_bytes())
        side = ports.get("side_http")
    except (OSError, ValidationError):
        side = None
    return configuration(
        controller_url=access.url,
        token_file=home.token_file,
        gateway=f"{HOST}:{side}" if side else None,
        interval_s=SCRAPE_INTERVAL_S,
    )


def _write(home: Home, made: Mapping[str, Any]) -> None:
    replace_file(home.prometheus / "prometheus.yml", yaml.safe_dump(dict(made), sort_keys=False))


def _port(home: Home) -> int:
    """The port it had the last time, so that bookmarks last, else one that is free."""
    with contextlib.suppress(OSError, ValueError):
        return urlsplit(home.prometheus_file.read_text().strip()).port or processes.free_ports(1, HOST)[0]
    return processes.free_ports(1, HOST)[0]


def _last_line(file: Path) -> str:
    lines = file.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it left no word"


def main() -> int:
    """Parse the arguments and run; the exit status says what went wrong."""
    parser = argparse.ArgumentParser(prog="python -m controlplane.metrics.program", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="the home folder that `ctl up` prepared")
    home = Home(parser.parse_args().home)
    configure()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        system = load_system(home)
        if system is None or system.metrics.program is None:
            raise InvalidInput(f"{home.root} holds no system with a Prometheus", remedy="start it with `ctl up`")
        run(home, system.metrics.program)
    except _Stopped:
        return 0
    except ControlPlaneError as error:
        log.error("Prometheus ends", code=error.code, reason=str(error))
        return STATUS[error.code].exit
    return 0


if __name__ == "__main__":
    sys.exit(main())
