"""What lies between an agent and its files: connections that break, proxies, certificates, secret addresses."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import http.server
import ipaddress
import os
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from controlplane.agent.disk import BlobStore, FetchFailed
from controlplane.core.errors import InvalidInput
from controlplane.core.models import ArtifactFile

CONTENT = os.urandom(3_000_000)
FILE = ArtifactFile(path="weights", sha256=hashlib.sha256(CONTENT).hexdigest(), size_bytes=len(CONTENT))
SECRET = "X-Amz-Signature=5ec4e7"


class Store(http.server.ThreadingHTTPServer):
    """Answers every GET with CONTENT, from where it is asked for. The first `cut_after` say how many bytes come before
    the connection is cut; /moved leads elsewhere."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.scheme = "http"
        self.cut_after: list[int] = []
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that refuse the certificate."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Store
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        wanted = self.headers["range"]
        self.server.asked.append((self.path, wanted))
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("location", f"{self.server.url}/weights")
            self.send_header("content-length", "0")
            self.end_headers()
            return
        body = CONTENT[int(wanted.removeprefix("bytes=").removesuffix("-")) :] if wanted else CONTENT
        self.send_response(206 if wanted else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.server.cut_after:
            body = body[: self.server.cut_after.pop(0)]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - its name in the base class
        pass


@contextlib.contextmanager
def _serving(store: Store) -> Iterator[Store]:
    thread = threading.Thread(target=store.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield store
    finally:
        store.shutdown()
        thread.join()
        store.server_close()


@pytest.fixture
def store() -> Iterator[Store]:
    with _serving(Store()) as store:
        yield store


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs", budget_bytes=1 << 30, parallel=4)


async def test_a_connection_that_is_cut_is_followed_by_one_for_the_rest(blobs: BlobStore, store: Store) -> None:
    store.cut_after = [2_000_000, 0]
    await blobs.fetch([FILE], {FILE.sha256: f"{store.url}/weights"})
    assert blobs.path(FILE.sha256).read_bytes() == CONTENT
    assert store.asked == [("/weights", None), ("/weights", "bytes=2000000-"), ("/weights", "bytes=2000000-")]


async def test_a_connection_that_is_always_cut_is_given_up_and_what_came_stays(
    blobs: BlobStore, store: Store, tmp_path: Path
) -> None:
    store.cut_after = [1000] * 4
    with pytest.raises(FetchFailed, match=r"weights can't be downloaded: .* ended 2996000 bytes too early"):
        await blobs.fetch([FILE], {FILE.sha256: f"{store.url}/weights"})
    assert (tmp_path / "blobs" / f".partial-{FILE.sha256}").read_bytes() == CONTENT[:4000]


async def test_a_redirect_is_not_followed(blobs: BlobStore, store: Store) -> None:
    with pytest.raises(FetchFailed, match="answered with 302"):
        await blobs.fetch([FILE], {FILE.sha256: f"{store.url}/moved"})
    assert store.asked == [("/moved", None)]


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_a_proxy_is_asked(blobs: BlobStore, store: Store, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, store.url)
    source = "http://store.invalid/weights?part=1"
    await blobs.fetch([FILE], {FILE.sha256: source})
    assert blobs.has(FILE)
    assert store.asked == [(source, None)]


async def test_no_proxy_is_asked_for_a_host_that_is_excepted(
    blobs: BlobStore, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:3128")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    await blobs.fetch([FILE], {FILE.sha256: f"{store.url}/weights"})
    assert store.asked == [("/weights", None)]


async def test_certificates_are_checked_against_those_that_are_trusted(
    blobs: BlobStore, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_certificate(tmp_path / "certificate.pem"))
    store.socket = context.wrap_socket(store.socket, server_side=True)
    store.scheme = "https"
    with pytest.raises(FetchFailed, match="CERTIFICATE_VERIFY_FAILED"):
        await blobs.fetch([FILE], {FILE.sha256: f"{store.url}/weights"})
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
    await blobs.fetch([FILE], {FILE.sha256: f"{store.url}/weights"})
    assert blobs.path(FILE.sha256).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("source", "error"),
    [
        pytest.param("http://127.0.0.1:1/weights?", FetchFailed, id="nobody there"),
        pytest.param("http://127.0.0.1:one/weights?", InvalidInput, id="no port"),
        pytest.param("http://[::1/weights?", InvalidInput, id="no host"),
        pytest.param("http://127.0.0.1:1/the weights?", InvalidInput, id="a space"),
        pytest.param("http://127.0.0.1:1/gewichte-ü?", InvalidInput, id="not ASCII"),
    ],
)
async def test_an_address_is_neither_logged_nor_told(
    blobs: BlobStore,
    source: str,
    error: type[Exception],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(error) as raised:
        await blobs.fetch([FILE], {FILE.sha256: source + SECRET})
    chain: list[BaseException] = [raised.value]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    assert all(SECRET not in repr(each) for each in chain)
    assert SECRET not in caplog.text + "".join(capsys.readouterr())


def _certificate(path: Path) -> Path:
    """A certificate for 127.0.0.1, signed by itself, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "store")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path
