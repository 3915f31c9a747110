"""Where a process listens that was told to take any port."""

from __future__ import annotations

import subprocess

import psutil


def port_of(process: subprocess.Popen[bytes]) -> int | None:
    """The port on which it listens; None while there is none. Nobody else can have taken it in between, as one that was
    only free a moment ago."""
    connections = psutil.Process(process.pid).net_connections("tcp")
    return next((each.laddr.port for each in connections if each.status == psutil.CONN_LISTEN), None)
