"""What a shell offers, asked as the shells ask: by a process of its own."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from controlplane.local.home import Home
from controlplane.registry import Registry
from tests.cli.conftest import Ctl


def offered(line: str, **environment: str) -> list[str]:
    """The words that can follow, for a line that ends where the cursor is."""
    words = shlex.split(line)
    cursor = len(words) if line.endswith(" ") else len(words) - 1
    done = subprocess.run(
        [sys.executable, "-m", "controlplane.cli.main"],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "_CTL_COMPLETE": "bash_complete",
            "COMP_WORDS": line,
            "COMP_CWORD": str(cursor),
            **environment,
        },
    )
    assert done.stderr == ""
    return [word.removeprefix("plain,") for word in done.stdout.split()]


@pytest.mark.usefixtures("two_versions", "fleet")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ctl describe model ", ["m"]),
        ("ctl describe version m", ["m@1", "m@2", "m@candidate"]),
        ("ctl describe fleet ", ["cpu"]),
        ("ctl get fleets c", ["cpu"]),
        ("ctl get fleets x", []),
        ("ctl promote ", ["m"]),
        ("ctl promote m@", ["m@1", "m@2", "m@candidate"]),
        ("ctl promote m ", ["1", "2", "candidate"]),
        ("ctl promote --no-wait m c", ["candidate"]),
        ("ctl promote nobody ", []),
        ("ctl infer m@c", ["m@candidate"]),
        ("ctl delete m@2", ["m@2"]),
        ("ctl diff m@1 m@", ["m@1", "m@2", "m@candidate"]),
        ("ctl render m@1 --fleet ", ["cpu"]),
        ("ctl validate --fleet ", ["cpu"]),
        ("ctl unquarantine m@1 --fleet ", ["cpu"]),
        ("ctl alias m ", ["candidate=1", "candidate=2"]),
        ("ctl alias m next=", ["next=1", "next=2", "next=candidate"]),
        ("ctl alias m --delete ", ["candidate"]),
        ("ctl scale ", ["cpu"]),
        ("ctl explain ", ["fleet", "model", "m"]),
        ("ctl explain fleet ", ["cpu"]),
        ("ctl explain model ", ["m"]),
        ("ctl explain m ", []),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_names_are_offered(ctl: Ctl, line: str, words: list[str]) -> None:
    assert ctl("alias", "m", "candidate=2").status == 0
    assert offered(line) == words


class Answers(BaseHTTPRequestHandler):
    """A controller that knows two replicas."""

    def do_GET(self) -> None:
        content = json.dumps([{"name": "cpu-0"}, {"name": "gpu-0"}] if self.path == "/v1/replicas" else []).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.usefixtures("ctl")
def test_replicas_are_asked_of_the_controller(home: Home) -> None:
    home.prepare()
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            home.controller_file.write_text(
                json.dumps({"url": f"http://127.0.0.1:{server.server_port}", "pid": os.getpid()})
            )
            assert offered("ctl describe replica c") == ["cpu-0"]
            assert offered("ctl get replicas ") == ["cpu-0", "gpu-0"]
        finally:
            server.shutdown()


@pytest.mark.usefixtures("two_versions", "fleet")
@pytest.mark.parametrize(
    "line", ["ctl describe replica ", "ctl promote m ", "ctl scale ", "ctl diff ", "ctl get models "]
)
def test_nothing_is_said_when_nothing_can_be_asked(home: Home, registry: Registry, line: str) -> None:
    assert offered(line, CTL_REGISTRY="s3://models/x", AWS_ENDPOINT_URL_S3="http://127.0.0.1:9") == []
    assert offered(line, CTL_REGISTRY="no://address") == []
    home.system_file.write_text("{")
    assert offered(line) == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_takes_a_version_for_one_word() -> None:
    script = (
        'COMP_WORDBREAKS=\' @:\'; source <("$0" -m controlplane.cli.main completion bash); echo "<$COMP_WORDBREAKS>"'
    )
    done = subprocess.run(["bash", "-c", script, sys.executable], capture_output=True, text=True, check=True)
    assert done.stdout == "< :>\n"
