"""The Triton that the nvidia-pytriton wheel brings, and what it takes to run it beside this Python.

The wheel's own folder is never written to: the backend directory that the server gets is made of links.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from controlplane.core.errors import InvalidInput

PROBED_PACKAGES = ("numpy", "onnxruntime", "torch", "openvino", "tensorrt", "transformers", "PIL", "cv2")
"""Packages that rendering or models may count on; reported when the server's Python has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """A Triton on this machine: its program, and the folders of its backends, stubs and caches."""

    binary: Path
    backends: Path
    stub: Path
    caches: Path

    def link_backends(self, folder: Path) -> tuple[str, ...]:
        """Make `folder` a backend directory with this Python's stub in it; returns the backends' names."""
        shutil.rmtree(folder, ignore_errors=True)
        names = []
        for backend in sorted(self.backends.iterdir()):
            if not backend.is_dir():
                continue
            names.append(backend.name)
            mine = folder / backend.name
            mine.mkdir(parents=True)
            for file in backend.iterdir():
                (mine / file.name).symlink_to(file)
            (mine / "__pycache__").touch()  # a file: bytecode that a full disk cuts short would break every model
        stub = folder / "python" / self.stub.name
        if (folder / "python").is_dir() and not stub.exists():
            stub.symlink_to(self.stub)
        return tuple(names)

    def environment(self) -> dict[str, str]:
        """What the server's environment needs beyond the scrubbed one, PATH aside.

        The stub starts its Python isolated from PYTHON* variables: what decides which packages a model can import is
        the first `python3` on the PATH.
        """
        library_folder = sysconfig.get_config_var("LIBDIR")
        shared = sysconfig.get_config_var("INSTSONAME") or ""
        if library_folder and (Path(library_folder) / shared).is_file() and ".so" in shared:
            return {"LD_LIBRARY_PATH": library_folder}
        name = f"python{sys.version_info.major}.{sys.version_info.minor}"
        if ctypes.util.find_library(name) is None:
            raise InvalidInput(
                f"lib{name}.so is not on this machine, and Triton's Python backend needs it",
                remedy=f"install Debian's lib{name}, or a Python that was built with --enable-shared",
            )
        return {}


def find_installation() -> Installation:
    """The installed wheel's Triton. Raises InvalidInput when it isn't there or has no stub for this Python."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise InvalidInput(
            "there is no Triton server in this Python environment", remedy="install triton-controlplane[local]"
        )
    root = Path(spec.submodule_search_locations[0]) / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = Installation(
        binary=root / "bin" / "tritonserver",
        backends=root / "backends",
        stub=root / "python_backend_stubs" / version / "triton_python_backend_stub",
        caches=root / "caches",
    )
    if not found.binary.is_file():
        raise InvalidInput(
            "the installed nvidia-pytriton holds no tritonserver", remedy="use its wheel for x86-64 Linux, 0.7 or newer"
        )
    if not found.stub.is_file():
        raise InvalidInput(
            f"the installed Triton has no Python stub for Python {version}", remedy="use Python 3.11 or 3.12"
        )
    return found


def python_packages() -> tuple[str, ...]:
    """Those of PROBED_PACKAGES that this Python has, which is the one that models run in."""
    return tuple(name for name in PROBED_PACKAGES if importlib.util.find_spec(name) is not None)
