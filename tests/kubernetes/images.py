"""The images that a cluster runs: ours as images/ describes them, and a Triton for tests. Built by buildah, and cached.

`python -m tests.kubernetes.images [NAME…]` builds them and prints their names and sizes. Needs root.
"""

from __future__ import annotations

import configparser
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = {
    **{name: ROOT / "images" / name / "Dockerfile" for name in ("agent", "controller", "gateway")},
    "triton": Path(__file__).parent / "images" / "triton" / "Dockerfile",
}

KEPT = 3
"""How many older images of a name stay."""

DEBIAN = "bookworm"
PYTHON, BUILDING = "python", "python-build"
BASES = {
    PYTHON: ("extract", "python3.11-minimal,libpython3.11-stdlib,libstdc++6,ca-certificates,netbase,tzdata,base-files"),
    BUILDING: ("minbase", "python3,python3-pip,libpython3.11,binutils"),
}
"""What stands for the images that a registry would have, made of Debian's packages (mmdebstrap's variant, packages): to
run with, without a shell or a package manager, and to build with."""

HOOKS = {
    # The packages' own scripts do not run: this is done in their place.
    PYTHON: [
        'cat "$1"/usr/share/ca-certificates/mozilla/*.crt >"$1"/etc/ssl/certs/ca-certificates.crt',
        'echo "root:x:0:0::/root:" >"$1"/etc/passwd && echo "nonroot:x:65532:65532::/tmp:" >>"$1"/etc/passwd',
        'echo "root:x:0:" >"$1"/etc/group && echo "nonroot:x:65532:" >>"$1"/etc/group',
        'for name in python python3; do ln -s python3.11 "$1"/usr/bin/$name; done',
        'chroot "$1" python3.11 -m compileall -q /usr/lib/python3.11',
    ],
    BUILDING: [
        'rm -rf "$1"/var/cache/apt/* "$1"/usr/lib/python3*/EXTERNALLY-MANAGED',
        'ln -s python3 "$1"/usr/bin/python',
    ],
}
"""Shell commands for a base that is unpacked in $1."""

INTERPRETER, PATH = "/usr/bin/python3", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

KEPT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")


def store() -> Path:
    """Where buildah keeps images and layers: apart from anybody else's."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "triton-controlplane" / "images"


def buildah(*words: str | Path) -> str:
    """What buildah prints, run on our store; its standard error is ours."""
    command = ["buildah", f"--root={store() / 'store'}", f"--runroot={store() / 'run'}", *words]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


@contextmanager
def _alone() -> Iterator[None]:
    """Nobody else uses the store meanwhile, and what an interrupted build left there is removed."""
    store().mkdir(parents=True, exist_ok=True)
    with (store() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        buildah("rm", "--all")
        try:
            yield
        finally:
            # A mount on itself, which would outlive us.
            subprocess.run(["umount", store() / "store" / "overlay"], check=False, stderr=subprocess.DEVNULL)


def build(name: str) -> str:
    """Build one of DOCKERFILES; returns its reference, whose tag changes whenever the image does."""
    repository = f"localhost/triton-controlplane/{name}"
    with _alone(), _package_settings() as mounts, tempfile.NamedTemporaryFile() as digest:
        bases = {kind: _base(kind) for kind in BASES}
        _say(f"building {name}")
        buildah(
            "bud",
            "--quiet",
            "--layers",
            "--pull-never",
            "--isolation=chroot",
            "--network=host",
            *(f"--volume={inside}:{outside}:ro" for inside, outside in mounts),
            f"--build-arg=BASE={bases[PYTHON]}",
            f"--build-arg=BUILD_BASE={bases[BUILDING]}",
            *([f"--build-arg=PYTHON={INTERPRETER}"] if name == "controller" else []),
            f"--iidfile={digest.name}",
            f"--file={DOCKERFILES[name]}",
            ROOT,
        )
        number = Path(digest.name).read_text().strip().removeprefix("sha256:")
        reference = f"{repository}:{number[:12]}"
        buildah("tag", number, reference)
        # Others may be about to use what they have built just now.
        for older in [each for each in _names(repository) if each != reference][KEPT:]:
            buildah("rmi", "--force", older)
    return reference


def from_program(name: str, program: Path) -> str:
    """An image that holds one static program and runs it; returns its reference."""
    reference = f"localhost/{name}:{program.stat().st_size}"
    with _alone():
        if not _names(reference):
            with _container("scratch") as container:
                buildah("copy", "--quiet", container, program, f"/{name}")
                buildah("config", f'--entrypoint=["/{name}"]', "--user=65535:65535", container)
                buildah("commit", "--quiet", container, reference)
    return reference


def save(reference: str, archive: Path) -> None:
    """Write an image to a file that containerd can import."""
    archive.unlink(missing_ok=True)
    with _alone():
        buildah("push", "--quiet", reference, f"docker-archive:{archive}:{reference}")


def sizes(reference: str) -> tuple[int, int]:
    """How many bytes an image's files have, and how many of them are not of its base."""
    with _alone():
        unpacked, base = _unpacked(reference), _unpacked(_base(PYTHON))
    return unpacked, unpacked - base


@contextmanager
def _container(image: str) -> Iterator[str]:
    """One of an image, removed afterwards."""
    made = buildah("from", "--pull-never", image)
    try:
        yield made
    finally:
        buildah("rm", made)


def _unpacked(reference: str) -> int:
    with _container(reference) as container:
        command = ["du", "-sx", "--apparent-size", "--block-size=1", buildah("mount", container)]
        return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[0])


def _names(prefix: str) -> list[str]:
    listed = buildah("images", "--format={{.Name}}:{{.Tag}}").split()
    return [each for each in listed if each == prefix or each.startswith(f"{prefix}:")]


def _base(kind: str) -> str:
    """An image of Debian's packages, made where it is missing."""
    recipe = hashlib.sha256(repr((BASES[kind], HOOKS[kind], KEPT_OUT)).encode()).hexdigest()[:8]
    repository = f"localhost/triton-controlplane/{kind}"
    reference = f"{repository}:{DEBIAN}-{recipe}"
    if _names(reference):
        return reference
    for older in _names(repository):
        buildah("rmi", "--force", older)
    _say(f"making {kind} of Debian's packages")
    same = platform.freedesktop_os_release().get("VERSION_CODENAME") == DEBIAN
    sources = [path for path in _files("/etc/apt/sources.list", "/etc/apt/sources.list.d") if same]
    variant, packages = BASES[kind]
    with _container("scratch") as container:
        folder = Path(buildah("mount", container))
        subprocess.run(
            [
                "mmdebstrap",
                "--quiet",
                f"--variant={variant}",
                f"--include={packages}",
                *(f"--dpkgopt=path-exclude={pattern}" for pattern in KEPT_OUT),
                *(f"--{'extract' if variant == 'extract' else 'customize'}-hook={hook}" for hook in HOOKS[kind]),
                DEBIAN,
                folder,
                *sources,
            ],
            check=True,
            stdout=sys.stderr,
        )
        # Where packages come from is this machine's business.
        (folder / "etc/apt/sources.list").unlink(missing_ok=True)
        shutil.rmtree(folder / "etc/apt/sources.list.d", ignore_errors=True)
        buildah("config", "--cmd=python3", f"--env=PATH={PATH}", container)
        buildah("commit", "--quiet", container, reference)
    return reference


@contextmanager
def _package_settings() -> Iterator[Sequence[tuple[str, str]]]:
    """Mounts (here, there) that a build sees and no image holds: where this machine gets Python packages from."""
    with tempfile.NamedTemporaryFile("w", prefix="pip-", suffix=".conf") as made:
        settings = configparser.RawConfigParser()
        settings["global"] = {}
        listed = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"], check=False, stdout=subprocess.PIPE, text=True
        ).stdout
        for line in listed.splitlines():
            key, _, value = line.partition("=")
            settings["global"][key.rpartition(".")[2]] = value.strip("'\"")
        for path in ("find-links", "cache-dir", "target", "prefix"):
            settings["global"].pop(path, None)
        settings.write(made)
        made.flush()
        certificates = [(path, path) for path in ("/etc/ssl/certs",) if Path(path).is_dir()]
        yield [(made.name, "/etc/pip.conf"), *certificates]


def _files(*places: str) -> Iterator[str]:
    for place in map(Path, places):
        for path in [place, *(sorted(place.glob("*")) if place.is_dir() else [])]:
            if path.is_file() and path.suffix in (".list", ".sources"):
                yield str(path)


def _say(what: str) -> None:
    print(f"images: {what} …", file=sys.stderr, flush=True)


def main(names: Sequence[str]) -> None:
    """Build what is named, else everything."""
    for name in names or DOCKERFILES:
        reference = build(name)
        unpacked, ours = sizes(reference)
        print(f"{reference}  {unpacked / 1e6:.0f} MB unpacked, {ours / 1e6:.0f} MB of it not the base's")


if __name__ == "__main__":
    main(sys.argv[1:])
