"""What an agent is told when it starts. Nothing secret is among it: it stands in argument lists."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One replica's agent.

    `gpus` is how many of the machine's GPUs the server may use, `gpu_indices` which (`0,1`; empty: the first).
    `disk_bytes` bounds the downloaded artifacts.
    `load_timeout_s` is the longest that a load may take, warm-up included, `proof_timeout_s` the example request.
    A server that misses `live_failures` checks in a row, `live_every_s` apart, is taken to hang. `exit_timeout_s` is
    what Triton gives requests in flight when it is told to end. Crashes further apart than `crash_window_s` have
    nothing to do with each other; for `settle_s` after its load a version is suspected like one that loads.
    `use_every_s`: how often the time of the last inference is read. `pod_ip`: the server is a container of this pod,
    which the kubelet starts and ends, and gateways reach it there (empty: the agent runs the server itself); `port`:
    where the agent then answers probes and the preStop hook, which waits `drain_s` at most.
    """

    home: Path
    replica: str
    fleet: str
    gpus: int = 0
    gpu_indices: str = ""
    disk_bytes: int = 20 << 30
    parallel_downloads: int = 4
    parallel_loads: int = 2
    response_cache_bytes: int = 64 << 20
    load_timeout_s: float = 300.0
    unload_timeout_s: float = 120.0
    proof_timeout_s: float = 30.0
    start_timeout_s: float = 60.0
    exit_timeout_s: int = 10
    live_every_s: float = 2.0
    live_timeout_s: float = 5.0
    live_failures: int = 4
    retry_min_s: float = 1.0
    retry_max_s: float = 60.0
    crash_window_s: float = 600.0
    settle_s: float = 2.0
    use_every_s: float = 2.0
    pod_ip: str = ""
    port: int = 8090
    drain_s: float = 60.0
