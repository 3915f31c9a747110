"""How fast an agent brings an artifact onto its disk, against a plain copy that takes the SHA-256 on its way.

Run ``python -m benchmarks.artifact_sync``. Both copy the same files from the same folder to the same disk, in turn.
Limit: the agent reaches at least 0.8 of the plain copy's speed. The same download over HTTP is shown beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import http.server
import os
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.ending import scratch
from controlplane.agent.disk import BlobStore
from controlplane.core.models import ArtifactFile
from examples.interrupts import interruptible

FILES, FILE_BYTES, ROUNDS = 4, 64 << 20, 5
LIMIT = 0.8


def plain(files: list[ArtifactFile], sources: Path, into: Path) -> None:
    """Copy each file in one pass and take its digest; one thread a file, as the agent does."""

    def copy(file: ArtifactFile) -> None:
        digest = hashlib.sha256()
        with (sources / file.sha256).open("rb") as source, (into / file.sha256).open("wb") as target:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                target.write(chunk)
        if digest.hexdigest() != file.sha256:
            raise RuntimeError("the copy differs")

    threads = [threading.Thread(target=copy, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def agent(files: list[ArtifactFile], sources: dict[str, str], into: Path) -> None:
    """What an agent does: fetch, check, rename."""
    store = BlobStore(into, budget_bytes=10 << 30, parallel=4)
    try:
        asyncio.run(store.fetch(files, sources))
    finally:
        store.close()


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder over HTTP on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - its name in the base class
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # who asked says what went wrong, unless it was interrupted

    server = Server(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def main() -> int:
    """Measure and print; 1 when the limit is missed."""
    with scratch() as folder:
        sources = folder / "sources"
        sources.mkdir()
        files = []
        for number in range(FILES):
            content = os.urandom(FILE_BYTES)
            digest = hashlib.sha256(content).hexdigest()
            (sources / digest).write_bytes(content)
            files.append(ArtifactFile(path=f"{number}.bin", sha256=digest, size_bytes=FILE_BYTES))
        with served(sources) as url:
            ways: dict[str, Callable[[Path], None]] = {
                "plain copy with SHA-256": lambda into: plain(files, sources, into),
                "agent, from a path": lambda into: agent(
                    files, {file.sha256: str(sources / file.sha256) for file in files}, into
                ),
                "agent, over HTTP": lambda into: agent(
                    files, {file.sha256: f"{url}/{file.sha256}" for file in files}, into
                ),
            }
            taken: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(ROUNDS):
                for way, run in ways.items():
                    into = folder / "into"
                    into.mkdir()
                    os.sync()
                    started = time.perf_counter()
                    run(into)
                    taken[way].append(time.perf_counter() - started)
                    shutil.rmtree(into)
    megabytes = FILES * FILE_BYTES / 1e6
    base = statistics.median(taken["plain copy with SHA-256"])
    print(f"{FILES} files of {FILE_BYTES >> 20} MiB, median of {ROUNDS} rounds in turn")
    print(f"{'':26} {'MB/s':>8} {'ratio':>6}")
    for way, seconds in taken.items():
        median = statistics.median(seconds)
        print(f"{way:26} {megabytes / median:8.0f} {base / median:6.2f}")
    return 0 if base / statistics.median(taken["agent, from a path"]) >= LIMIT else 1


if __name__ == "__main__":
    sys.exit(interruptible(main))
