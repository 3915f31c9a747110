"""The Python part's own health and metrics, on loopback. Requests, failures and latency are in Envoy's statistics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from controlplane.core.routes import RouteTable
from gateway.envoy import Envoy
from gateway.forwarding import Forwarding
from gateway.holding import Holding
from gateway.replicas import Replicas
from gateway.sequences import Sequences

Handler = Callable[[Request], Awaitable[Response]]


class Watched(Protocol):
    """What of a gateway is looked at."""

    envoy: Envoy
    forwarding: Forwarding
    holding: Holding
    replicas: Replicas
    sequences: Sequences

    @property
    def served(self) -> RouteTable:
        """The table in force."""

    @property
    def reason(self) -> str:
        """Why a newer one is not."""


def health(gateway: Watched) -> Handler:
    """`/healthz`: 200 while Envoy runs."""

    async def answer(_: Request) -> Response:
        table, alive = gateway.served, gateway.envoy.running
        text = {
            "envoy": "running" if alive else "down",
            "epoch": table.epoch,
            "generation": table.generation,
            "routes": len(table.routes),
            "waiting": gateway.holding.waiting,
            "reason": gateway.reason,
        }
        return JSONResponse(text, status_code=200 if alive else 503)

    return answer


class _Collector:
    """Reads the gateway's state when it is scraped."""

    def __init__(self, gateway: Watched) -> None:
        self._gateway = gateway

    def collect(self) -> Iterator[Metric]:
        """The present values."""
        gateway = self._gateway
        waiting = GaugeMetricFamily(
            "gateway_waiting_requests", "Requests that wait for a model that is not loaded", labels=["model", "version"]
        )
        for demand in gateway.holding.demand:
            waiting.add_metric([demand.model, str(demand.version)], demand.waiting)
        yield waiting
        in_flight = GaugeMetricFamily(
            "gateway_side_requests", "Requests of the Python side in flight", labels=["replica"]
        )
        for replica, count in gateway.replicas.in_flight.items():
            in_flight.add_metric([replica], count)
        yield in_flight
        shed = CounterMetricFamily(
            "gateway_side_shed", "Requests that the Python side refused since there was too much", labels=["model"]
        )
        for model, count in gateway.forwarding.shed.items():
            shed.add_metric([model], count)
        yield shed
        yield GaugeMetricFamily(
            "gateway_waiting_bytes", "Size of the requests that wait", value=gateway.holding.waiting_bytes
        )
        table = gateway.served
        for name, text, value in (
            ("gateway_table_epoch", "Epoch of the table in force", table.epoch),
            ("gateway_table_generation", "Generation of the table in force", table.generation),
            ("gateway_table_routes", "Models in the table in force", len(table.routes)),
            ("gateway_table_refused", "1 while a newer table is refused", int(bool(gateway.reason))),
            ("gateway_sequences", "Sequences of unary requests that are remembered", len(gateway.sequences)),
            ("gateway_envoy_running", "1 while Envoy runs", int(gateway.envoy.running)),
        ):
            yield GaugeMetricFamily(name, text, value=value)
        yield CounterMetricFamily(
            "gateway_envoy_restarts", "Times that Envoy was started again", gateway.envoy.restarts
        )


def metrics(gateway: Watched) -> Callable[[], bytes]:
    """What gives the present values in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Collector(gateway))
    return lambda: generate_latest(registry)


def exposed(values: Callable[[], Awaitable[bytes]]) -> Handler:
    """`/metrics`."""

    async def answer(_: Request) -> Response:
        return Response(await values(), media_type=CONTENT_TYPE_LATEST)

    return answer
