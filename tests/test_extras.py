"""What a part imports is in the pinned list of its extra: it starts where nothing else is installed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

IMPORTING = """
import importlib, pkgutil, sys
from importlib.metadata import packages_distributions
from pathlib import Path

package, *listed = sys.argv[1:]
plain = lambda name: name.lower().replace("_", "-").replace(".", "-")
owners = packages_distributions()
known = {*listed, "triton-controlplane"}
missing = {top for top, names in owners.items() if known.isdisjoint(map(plain, names))}

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"{name} is in no package of the list", name=name)

sys.meta_path.insert(0, Refusing())
root = importlib.import_module(package)
for each in pkgutil.walk_packages(root.__path__, f"{package}."):
    if not each.name.endswith("__main__"):
        importlib.import_module(each.name)
"""


def listed(extra: str) -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+)==", Path(f"requirements/{extra}.txt").read_text(), re.MULTILINE))


@pytest.mark.parametrize(
    ("extra", "package"),
    [
        ("agent", "controlplane.agent"),
        ("gateway", "gateway"),
        ("controller", "controlplane.server"),
        ("cli", "controlplane.cli"),
    ],
)
def test_a_part_needs_nothing_beyond_its_list(extra: str, package: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING, package, *sorted(listed(extra))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("extra", ["agent", "gateway"])
def test_what_runs_beside_servers_is_small(extra: str) -> None:
    heavy = {"cuda-python", "cuda-bindings", "gevent", "aiohttp", "perf-analyzer", "boto3", "matplotlib"}
    assert not listed(extra) & heavy
