"""The main job in a minute or two, on real models and real servers: `make demo`.

Starts a system of two Triton replicas behind the gateway, registers real models, classifies the files of this very
clone while a new version is promoted and rolled back, and reports what happened. Everything is done as a user would:
through `ctl` and through tritonclient. Ends with everything stopped; Ctrl-C at any instant does too.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tritonclient.grpc as triton_grpc

from controlplane.client.reader import Reader
from controlplane.core.errors import Conflict
from controlplane.local import processes
from controlplane.local.home import Home
from controlplane.local.supervisor import owned, owner
from examples import models
from examples.drawing import image
from examples.elastic import follow
from examples.file_types import features, labels_of
from examples.interrupts import undisturbed
from examples.speech import heard, hum, voice
from examples.traffic import GRPC_CLIENTS, HTTP_CLIENTS, Traffic

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / ".demo"
HOME = DEMO / "home"
FILES = 400


def say(text: str = "") -> None:
    """Print a line at once."""
    print(text, flush=True)


def heading(text: str) -> None:
    """Say what comes next."""
    say(f"\n── {text} " + "─" * max(0, 76 - len(text)))


def ctl(*arguments: str, quiet: bool = False) -> str:
    """Run `ctl` as a user would, with what it prints passed on; returns what it printed as data."""
    shown = shlex.join(["ctl", *arguments])
    if not quiet:
        say(f"$ {shown}")
    done = subprocess.run(
        [sys.executable, "-m", "controlplane.cli.main", *arguments],
        cwd=ROOT,
        env={
            **{name: value for name, value in os.environ.items() if name != "CTL_REGISTRY"},
            "CTL_HOME_DIR": inside(HOME),
        },
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.stdout and not quiet:
        say(done.stdout.rstrip())
    if done.returncode:
        raise SystemExit(f"{shown} ended with {done.returncode}")
    return done.stdout


def inside(path: Path) -> str:
    """A path of this clone as a user writes it who stands at its root."""
    return str(path.relative_to(ROOT))


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hold the demo's folder, with nothing of an earlier run in it.

    Raises SystemExit where another demo holds it, or where a system that one left behind is running.
    """
    DEMO.mkdir(exist_ok=True)
    with (DEMO / "pid").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise SystemExit(f"a demo is running already: process {file.read().strip() or 'unknown'}") from None
        pid = owner(Home(HOME))
        if pid is not None:
            raise SystemExit(
                f"a system is running in {inside(HOME)}: process {pid}; end it with `ctl --home {inside(HOME)} down`"
            )
        file.truncate(0)
        print(os.getpid(), file=file, flush=True)
        for each in DEMO.iterdir():
            if each.name != "pid":
                shutil.rmtree(each)
        yield


def on_fleet(folder: Path, fleet: str) -> Path:
    """A copy of a model's folder for a fleet, whose name it gets."""
    copy = folder.with_name(fleet)
    shutil.copytree(folder, copy)
    entry = (copy / "model.yaml").read_text().replace(f"name: {folder.name}\n", f"name: {fleet}\nfleet: {fleet}\n")
    (copy / "model.yaml").write_text(entry)
    return copy


def files_of_the_clone() -> list[tuple[str, bytes]]:
    """Names and contents of the files of this clone, the same for everybody who has it."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False).stdout.decode()
    names = [name for name in listed.split("\0") if name] or [
        str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("*/**/*.py")) if ".venv" not in path.parts
    ]
    found = [(name, (ROOT / name).read_bytes()) for name in names if (ROOT / name).is_file()]
    return [(name, content) for name, content in found if len(content) >= 8][:FILES]


def latency_ms(url: str, made: Any, requests: int = 60) -> tuple[float, float]:
    """Median and 95th percentile of one client's requests over gRPC, one at a time, in milliseconds."""
    taken = []
    with contextlib.closing(triton_grpc.InferenceServerClient(url)) as client:
        given = triton_grpc.InferInput("bytes", made.shape, "INT32")
        given.set_data_from_numpy(made)
        for _ in range(requests):
            started = time.perf_counter()
            client.infer("magika", [given], client_timeout=30)
            taken.append((time.perf_counter() - started) * 1e3)
    taken = sorted(taken[5:])
    return statistics.median(taken), taken[int(len(taken) * 0.95)]


def batch_sizes(replicas: list[dict[str, Any]]) -> Counter[int]:
    """How many executions of the classifier there were of each batch size, over all replicas and versions."""
    sizes: Counter[int] = Counter()
    for replica in replicas:
        endpoint = replica["endpoint"]
        with contextlib.closing(
            triton_grpc.InferenceServerClient(f"{endpoint['host']}:{endpoint['grpc_port']}")
        ) as client:
            for copy in replica["copies"]:
                if copy["model"] == "magika" and copy["state"] == "ready":
                    statistics_ = client.get_inference_statistics("magika", str(copy["version"]), as_json=True)
                    for stats in statistics_["model_stats"]:
                        for batch in stats.get("batch_stats", ()):
                            sizes[int(batch["batch_size"])] += int(batch["compute_infer"]["count"])
    return sizes


def ask_the_others(grpc: str) -> None:
    """Two sounds, each as a sequence, and one image: what came back."""
    with contextlib.closing(triton_grpc.InferenceServerClient(grpc)) as client:
        said = voice()
        voices, hums = zip(*heard(client, [said, hum(len(said))]), strict=True)
        say(
            f"silero-vad, two sequences of {len(voices)} requests, in turns: speech? "
            f"a voice up to {max(voices):.2f}, a hum {hums[-1]:.2f} at its end"
        )
        picture = np.full((96, 352, 3), 255, dtype=np.uint8)
        drawn = image("HELLO", scale=4)
        picture[: drawn.shape[0], : drawn.shape[1]] = drawn
        pixels = np.ascontiguousarray((picture.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None])
        given = triton_grpc.InferInput("x", list(pixels.shape), "FP32")
        given.set_data_from_numpy(pixels)
        found = client.infer("ocr-detection", [given], client_timeout=60).as_numpy("fetch_name_0")[0, 0] > 0.3
        left, right = found[:, :176].mean(), found[:, 176:].mean()
        say(
            f"ocr-detection, HELLO drawn on the left: text covers {left:.0%} of the left half, {right:.0%} of the right"
        )


def main() -> int:
    """Do it all, and stop it all; 0 when no request failed."""
    with alone():
        try:
            return show()
        finally:
            undisturbed()
            for child in psutil.Process().children():  # a `ctl` that had just been started when the interrupt came
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
                    child.wait()
            if HOME.exists():
                say("stopping …")
                with contextlib.suppress(SystemExit):
                    ctl("down", quiet=True)
                _sweep()


def _sweep(timeout_s: float = 20.0) -> None:
    """Kill whatever is left of the system. What an interrupted `ctl up` was just starting can't be found yet; but it
    holds the home."""
    deadline = time.monotonic() + timeout_s
    while True:
        processes.sweep(HOME)
        try:
            with owned(Home(HOME)):
                return
        except Conflict:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def show() -> int:
    """The demo itself; 0 when no request failed."""
    started = time.monotonic()
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    heading("models: real ones, out of released packages")
    folders = {
        name: models.prepare(name, DEMO / "models", say)
        for name in ("magika", "magika-1.0.3", "silero-vad", "ocr-detection")
    }
    say("magika 0.6.1 and 1.0.3 (file types), silero-vad (speech), ocr-detection (text in images)")

    heading("a system: directory registry, controller, gateway, two Triton replicas")
    say(f"$ export CTL_HOME_DIR={inside(HOME)}")
    ctl("up", "-d", "-f", "examples/demo.yaml")

    heading("register: the bytes go into the registry, what the file says into the entry")
    for name in ("magika", "silero-vad", "ocr-detection"):
        ctl("register", name, inside(folders[name]), "--reason", "demo")
    ctl("register", "magika", inside(folders["magika-1.0.3"]), "--reason", "the newer release")
    ctl("register", "elastic", inside(on_fleet(folders["magika"], "elastic")), "--reason", "demo: on another fleet")

    heading("promote: loaded, proved, routed; then `stable` moves")
    for name in ("magika", "silero-vad", "ocr-detection", "elastic"):
        ctl("promote", name, "1")

    addresses = json.loads(ctl("status", "-o", "json", quiet=True))
    grpc, http = addresses["grpc"], addresses["http"]
    files, labels = files_of_the_clone(), labels_of(folders["magika"] / "labels.txt")
    heading(f"classify {len(files)} files of this clone, {GRPC_CLIENTS} gRPC and {HTTP_CLIENTS} HTTP clients")
    with Traffic(grpc, http, "magika", files, labels) as traffic:
        traffic.wait_for(250)
        say(f"{traffic.total()} answers from version {', '.join(sorted(traffic.by_version))}; now, under load:")
        ctl("promote", "magika", "2", "--reason", "demo")
        traffic.wait_for(250)
        ctl("rollback", "magika", "--reason", "demo: back again")
        traffic.wait_for(150)
    ask_the_others(grpc)

    heading("what happened")
    ctl("history", "magika")
    ctl("get", "replicas")
    ctl("get", "routes")
    replicas = json.loads(ctl("get", "replicas", "-o", "json", quiet=True))
    report(traffic, files, replicas, grpc)

    heading("replicas follow the load: a fleet of none to three")
    with Reader.of(Home(HOME)) as reader:
        elastic = follow(Traffic(grpc, http, "elastic", files, labels), reader, ctl, say)
    say(f"\nin {time.monotonic() - started:.0f} s; the home was {inside(HOME)}")
    return 1 if traffic.failures or elastic.failures else 0


def report(traffic: Traffic, files: list[tuple[str, bytes]], replicas: list[dict[str, Any]], grpc: str) -> None:
    """Print what was asked, what came back, and how."""
    kinds = Counter(traffic.answers.values())
    say(f"\nasked      {len(files)} files, over and over: {traffic.total()} requests")
    say("came back  " + ", ".join(f"{label} {count}" for label, count in kinds.most_common(8)))
    for name, label in list(traffic.answers.items())[:5]:
        say(f"           {name} → {label}")
    say("protocols  " + ", ".join(f"{name} {count}" for name, count in sorted(traffic.by_protocol.items())))
    say("versions   " + ", ".join(f"{version}: {count}" for version, count in sorted(traffic.by_version.items())))
    say(f"failures   {sum(traffic.failures.values())}")
    for text, count in traffic.failures.most_common(5):
        say(f"           {count} × {text}")
    sizes = batch_sizes(replicas)
    executions = sum(sizes.values())
    mean = sum(size * count for size, count in sizes.items()) / executions if executions else 0.0
    say(f"batching   {executions} executions, {mean:.1f} requests in each on average; most often " + shown(sizes))
    made = features(files[0][1])[None, :]
    through = latency_ms(grpc, made)
    holders = [each for each in replicas if any(copy["model"] == "magika" for copy in each["copies"])]
    direct = latency_ms(f"{holders[0]['endpoint']['host']}:{holders[0]['endpoint']['grpc_port']}", made)
    say(
        f"latency    one client, median / 95 %: gateway {through[0]:.1f} / {through[1]:.1f} ms, "
        f"direct {direct[0]:.1f} / {direct[1]:.1f} ms"
    )


def shown(sizes: Counter[int]) -> str:
    """The commonest batch sizes, as a person reads them."""
    return ", ".join(f"{size} ({count}×)" for size, count in sizes.most_common(4))
