"""Real S3 servers for the contract suite: moto's, and versitygw where it is installed or can be built."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import boto3
import httpx2
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

from tests.listening import port_of
from tests.waiting import until

BUCKET = "registry"
ACCESS_KEY, SECRET_KEY = "tester", "tester-secret"
BUILD = Path(__file__).with_name("versitygw.sh")


@dataclass(frozen=True, slots=True)
class S3Server:
    """A server that is up and has the bucket."""

    endpoint: str
    asks_everybody: bool = True

    @contextlib.contextmanager
    def checking_credentials(self) -> Iterator[None]:
        """Moto looks at credentials only when it is told to."""
        self._check(count="0")
        try:
            yield
        finally:
            self._check(count="inf")

    def _check(self, *, count: str) -> None:
        if not self.asks_everybody:
            httpx2.post(f"{self.endpoint}/moto-api/reset-auth", content=count, trust_env=False).raise_for_status()

    @property
    def environment(self) -> dict[str, str]:
        """What makes boto3 use it, and nothing that lies around on this machine."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def has_versitygw() -> bool:
    """Whether versitygw is here or can be built."""
    return shutil.which("versitygw") is not None or shutil.which("go") is not None


def versitygw_program() -> str:
    """Where versitygw lies. It is built if need be, which takes minutes, with news of it on standard error."""
    found = shutil.which("versitygw")
    return found or subprocess.run([BUILD], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def make_bucket(endpoint: str) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
    )
    client.create_bucket(Bucket=BUCKET)


@contextlib.contextmanager
def moto() -> Iterator[S3Server]:
    """Moto's server, in a thread of this process, over real HTTP.

    It looks whether a condition holds and then writes, while other threads do the same: of two writers both may
    win. A store that has conditional writes does that at once, and so does this one here.
    """
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    write, alone = S3Response.put_object, threading.Lock()

    def put_object(response: S3Response) -> object:
        with alone:
            return write(response)

    with mock.patch.object(S3Response, "put_object", put_object):
        server.start()
        try:
            host, port = server.get_host_and_port()
            make_bucket(f"http://{host}:{port}")
            yield S3Server(f"http://{host}:{port}", asks_everybody=False)
        finally:
            server.stop()


@contextlib.contextmanager
def versitygw(folder: Path, host: str = "127.0.0.1") -> Iterator[S3Server]:
    """Versitygw over a plain folder."""
    folder.mkdir()
    ends_with_this_one = ("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()
    process = subprocess.Popen(
        [*ends_with_this_one, versitygw_program(), "--port", f"{host}:0", "--quiet", "posix", str(folder)],
        env={**os.environ, "ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        endpoint = f"http://{host}:{until(lambda: _port(process), what='versitygw does not listen')}"
        make_bucket(endpoint)
        yield S3Server(endpoint)
    finally:
        process.terminate()
        process.wait(10)


def _port(process: subprocess.Popen[bytes]) -> int | None:
    assert process.poll() is None, "versitygw ended at once"
    return port_of(process)
