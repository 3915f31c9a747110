"""The servers whose metrics can be scraped, in the form of Prometheus' HTTP service discovery."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from controlplane.core.names import authority

if TYPE_CHECKING:
    from controlplane.server.controller import Controller


def targets(controller: Controller, now: float) -> list[dict[str, Any]]:
    """Every replica whose server is ready, with the labels that its series should carry."""
    return [
        {
            "targets": [authority(report.endpoint.host, report.metrics_port)],
            "labels": {"fleet": report.fleet, "replica": name},
        }
        for name, (report, _) in sorted(controller.memory.reports.items())
        if report.server == "ready" and report.endpoint is not None and report.metrics_port is not None
    ]
