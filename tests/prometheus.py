"""A real Prometheus, and servers whose metrics pages the test writes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import yaml

from controlplane.metrics.program import configuration, rules
from tests.listening import port_of
from tests.waiting import until

FETCH = Path(__file__).with_name("prometheus.sh")
TOKEN = "a-token-for-the-test"


@cache
def programs() -> Path:
    """The folder that holds prometheus and promtool: PATH's own, else Debian's, fetched into the cache."""
    found = shutil.which("prometheus")
    if found and (Path(found).parent / "promtool").exists():
        return Path(found).parent
    done = subprocess.run([FETCH], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"Prometheus can't be fetched: {done.stderr}"
    return Path(done.stdout.strip())


class Page:
    """An HTTP server with one page, which may change at any time."""

    def __init__(self, text: str | None = "", *, token: str | None = None) -> None:
        self.text = text
        """None: it answers 503."""
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                allowed = token is None or self.headers.get("authorization") == f"Bearer {token}"
                body = (page.text or "").encode() if allowed else b""
                self.send_response(401 if not allowed else 503 if page.text is None else 200)
                self.send_header("Content-Type", "application/json" if body.startswith(b"[") else "text/plain")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                self.do_GET()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self.url = f"http://{self.address}/metrics"

    def close(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


class Prometheus:
    """A running Prometheus that scrapes every `interval_s` what `targets` lists, set up as `ctl up` sets it up."""

    def __init__(self, folder: Path, *, interval_s: int = 1) -> None:
        self.folder = folder
        self._targets = Page("[]", token=TOKEN)
        self._port = 0
        folder.mkdir(exist_ok=True)
        (folder / "token").write_text(TOKEN + "\n")
        made = configuration(
            controller_url=f"http://{self._targets.address}",
            token_file=folder / "token",
            gateway=None,
            interval_s=interval_s,
        )
        (folder / "prometheus.yml").write_text(yaml.safe_dump(dict(made)))
        (folder / "rules.yaml").write_text(rules())
        self.process = self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> subprocess.Popen[bytes]:
        """Start it, on any port at first, and on the same one later."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    programs() / "prometheus",
                    f"--config.file={self.folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={self.folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self._port}",
                ],
                stdout=log,
                stderr=log,
            )
        until(self._ready, what=f"Prometheus does not start: {(self.folder / 'log').read_text()[-2000:]}")
        return self.process

    def _ready(self) -> bool:
        assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
        self._port = self._port or port_of(self.process) or 0
        try:
            return httpx2.get(f"{self.url}/-/ready", trust_env=False).status_code == 200
        except httpx2.HTTPError:
            return False

    def scrape(self, targets: Mapping[Page, Mapping[str, str]]) -> None:
        """Have pages scraped, with these labels, in place of those before. Prometheus takes up to 5 s to do so."""
        self._targets.text = json.dumps(
            [{"targets": [page.address], "labels": dict(labels)} for page, labels in targets.items()]
        )

    def value(self, query: str) -> float | None:
        """The value of a query that has one."""
        found = httpx2.get(f"{self.url}/api/v1/query", params={"query": query}, trust_env=False).json()["data"][
            "result"
        ]
        return float(found[0]["value"][1]) if found else None

    def times(self, query: str) -> list[float]:
        """When the samples of the last minutes were scraped, of a query for one series."""
        params = {"query": f"{query}[5m]"}
        found = httpx2.get(f"{self.url}/api/v1/query", params=params, trust_env=False).json()["data"]["result"]
        return [float(at) for at, _ in found[0]["values"]]

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def close(self) -> None:
        self.kill()
        self._targets.close()


@contextmanager
def prometheus(folder: Path, *, interval_s: int = 1) -> Iterator[Prometheus]:
    """One, ended afterwards."""
    made = Prometheus(folder, interval_s=interval_s)
    try:
        yield made
    finally:
        made.close()
