"""How fast an agent brings an artifact onto its disk, from a path and over HTTP.

Run ``python -m benchmarks.artifact_sync``. Each way has a peer that brings the same files from the same place to the
same disk, takes the SHA-256 as they pass and does nothing else: a plain copy, and a plain download with ``http.client``
over as many connections. All take turns. Limit: the agent reaches at least 0.8 of its peer's speed, by the median of
the rounds' ratios. A process of its own serves the files, with sendfile, so that it is not the server that is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import http.client
import http.server
import io
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.ending import scratch
from controlplane.agent.disk import BlobStore
from controlplane.core.models import ArtifactFile
from controlplane.local.processes import HOME_VARIABLE
from examples.interrupts import interruptible

FILES, FILE_BYTES, ROUNDS = 4, 64 << 20, 11
LIMIT = 0.8
HOST = "127.0.0.1"
CHUNK_BYTES = 1 << 20


class Handler(http.server.SimpleHTTPRequestHandler):
    """A folder's files; the kernel copies them to the connection."""

    protocol_version = "HTTP/1.1"

    def copyfile(self, source: Any, outputfile: Any) -> None:
        """The body, after the headers."""
        self.connection.sendfile(source)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - its name in the base class
        """Nothing: who asks says what went wrong."""


def serve(folder: str) -> int:
    """Serve until killed. The port goes to the standard output."""
    with http.server.ThreadingHTTPServer((HOST, 0), functools.partial(Handler, directory=folder)) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()
    return 0


@contextlib.contextmanager
def served(sources: Path, home: Path) -> Iterator[int]:
    """The folder over HTTP on this machine: the port."""
    command = [sys.executable, "-m", "benchmarks.artifact_sync", str(sources)]
    environment = {**os.environ, HOME_VARIABLE: str(home)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


def digest_while_writing(source: io.FileIO | http.client.HTTPResponse, target: Path) -> str:
    """One pass through one buffer."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK_BYTES))
    with target.open("wb", buffering=0) as out:
        while count := source.readinto(buffer):
            digest.update(buffer[:count])
            out.write(buffer[:count])
    return digest.hexdigest()


def copy(source: Path, target: Path) -> str:
    """A plain copy; returns the SHA-256."""
    with source.open("rb", buffering=0) as opened:
        return digest_while_writing(opened, target)


def download(port: int, name: str, target: Path) -> str:
    """A plain download; returns the SHA-256."""
    with contextlib.closing(http.client.HTTPConnection(HOST, port)) as connection:
        connection.request("GET", f"/{name}")
        with connection.getresponse() as answer:
            return digest_while_writing(answer, target)


def plain(files: list[ArtifactFile], one: Callable[[str, Path], str], into: Path) -> None:
    """Bring the files over by `one`, one thread a file, as the agent does."""
    with ThreadPoolExecutor(FILES) as threads:
        digests = threads.map(lambda file: one(file.sha256, into / file.sha256), files)
        if list(digests) != [file.sha256 for file in files]:
            raise RuntimeError("a file arrived damaged")


def agent(files: list[ArtifactFile], place: str, into: Path) -> None:
    """What an agent does: fetch, check, rename."""
    store = BlobStore(into, budget_bytes=10 << 30, parallel=FILES)
    try:
        asyncio.run(store.fetch(files, {file.sha256: f"{place}/{file.sha256}" for file in files}))
    finally:
        store.close()


def main() -> int:
    """Measure and print; 1 when a limit is missed."""
    with scratch() as folder:
        sources, into = folder / "sources", folder / "into"
        sources.mkdir()
        files = []
        for number in range(FILES):
            content = os.urandom(FILE_BYTES)
            digest = hashlib.sha256(content).hexdigest()
            (sources / digest).write_bytes(content)
            files.append(ArtifactFile(path=f"{number}.bin", sha256=digest, size_bytes=FILE_BYTES))
        with served(sources, folder) as port:
            ways: dict[str, Callable[[], None]] = {
                "plain copy": lambda: plain(files, lambda name, target: copy(sources / name, target), into),
                "agent, from a path": lambda: agent(files, str(sources), into),
                "plain HTTP download": lambda: plain(files, functools.partial(download, port), into),
                "agent, over HTTP": lambda: agent(files, f"http://{HOST}:{port}", into),
            }
            taken: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(ROUNDS):
                for way, run in ways.items():
                    into.mkdir()
                    os.sync()
                    started = time.perf_counter()
                    run()
                    taken[way].append(time.perf_counter() - started)
                    shutil.rmtree(into)
    megabytes = FILES * FILE_BYTES / 1e6
    print(f"{FILES} files of {FILE_BYTES >> 20} MiB, SHA-256 taken; medians of {ROUNDS} rounds in turn")
    print(f"{'':22} {'MB/s':>6} {'ratio':>6} {'limit':>6}")
    missed = False
    for peer, way in (("plain copy", "agent, from a path"), ("plain HTTP download", "agent, over HTTP")):
        ratio = statistics.median(theirs / ours for theirs, ours in zip(taken[peer], taken[way], strict=True))
        print(f"{peer:22} {megabytes / statistics.median(taken[peer]):6.0f}")
        print(f"{way:22} {megabytes / statistics.median(taken[way]):6.0f} {ratio:6.2f} {LIMIT:6}")
        missed = missed or ratio < LIMIT
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(serve(sys.argv[1]) if sys.argv[1:] else interruptible(main))
