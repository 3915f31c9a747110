"""A disk that can't be written: what is served, is served on; a newer table comes into force when there is room."""

from __future__ import annotations

from dataclasses import replace

import psutil

from controlplane.core.routes import RouteTable
from tests.gateway.asking import ask
from tests.gateway.running import Running, route
from tests.gateway.triton import Triton
from tests.gateway.waiting import wait_for


def test_a_disk_that_can_not_be_written_ends_no_gateway(
    gateway: Running, tritons: tuple[Triton, Triton], full_table: RouteTable
) -> None:
    gateway.controller.put(full_table)
    python = psutil.Process(gateway.process.pid)
    python.rlimit(psutil.RLIMIT_FSIZE, (0, psutil.RLIM_INFINITY))  # no file of this process can grow
    wanted = gateway.controller.order(replace(full_table, routes={**full_table.routes, "echo": route("echo", 1)}))
    wait_for(lambda: "can't be written" in gateway.controller.latest.reason, "the gateway to say why")
    with gateway.grpc() as client:
        assert ask(client, "echo") == 2
        python.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
        wait_for(lambda: gateway.controller.latest.generation == wanted.generation, "the table to come into force")
        assert ask(client, "echo") == 1
    assert gateway.process.poll() is None
    gateway.process.kill()
    gateway.process.wait(10)
    gateway.start()  # the table is on the disk, too
    assert gateway.controller.latest.generation == wanted.generation
