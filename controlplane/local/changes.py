"""What is different between two definitions of a system, and what of it a running one can take over."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from controlplane.core.errors import InvalidInput
from controlplane.local.system import System

ABSENT = "absent"
_FIXED = re.compile(r"(registry|(gateway|metrics)\..*|fleets\[.*\]\.(disk_bytes|gpus|load_timeout_s))")
"""What the gateway, Prometheus and the agents got when they were started. All else only the controller has to know."""


@dataclass(frozen=True, slots=True)
class Change:
    """A setting, such as `fleets[cpu].replicas.max`, with its value `before` and `after` (or ABSENT)."""

    setting: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.setting}: {_said(self.before)} → {_said(self.after)}"

    @property
    def problem(self) -> InvalidInput | None:
        """Why a running system can't take it over."""
        if self.after == ABSENT and self.setting.startswith("fleets["):
            what = "a fleet that runs can't be left out"
            remedy = "give it `replicas: 0`; or `ctl down`, then `ctl up -f` with this file"
            return InvalidInput(what, field=self.setting, remedy=remedy)
        if _FIXED.fullmatch(self.setting):
            what = f"{_said(self.before)} can't become {_said(self.after)} while it runs"
            return InvalidInput(what, field=self.setting, remedy="`ctl down`, then `ctl up -f` with this file")
        return None


def changes(before: System, after: System) -> list[Change]:
    """What is different, by setting; a fleet that is new, or left out, is one change."""
    old, new = _flat(before), _flat(after)
    names = [{each.name for each in system.fleets} for system in (before, after)]
    found = [Change(f"fleets[{name}]", ABSENT, "new") for name in sorted(names[1] - names[0])]
    found += [Change(f"fleets[{name}]", "there", ABSENT) for name in sorted(names[0] - names[1])]
    whole = tuple(f"{each.setting}." for each in found)
    for setting in sorted(old.keys() | new.keys()):
        one, other = old.get(setting, ABSENT), new.get(setting, ABSENT)
        if one != other and not setting.startswith(whole):
            found.append(Change(setting, one, other))
    return found


def _flat(system: System) -> dict[str, Any]:
    """The settings, by their names."""
    data = TypeAdapter(System).dump_python(system, mode="json")
    fleets = {f"fleets[{each['name']}]": each for each in data.pop("fleets")}
    return dict(_settings({**data, **fleets}))


def _settings(data: dict[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{where}{name}.")
        else:
            yield f"{where}{name}", value


def _said(value: Any) -> str:
    """As it is written in a definition, without what is not stated."""
    if isinstance(value, list):
        return f"[{', '.join(map(_said, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {_said(each)}' for name, each in value.items() if each is not None)}}}"
    return "none" if value is None else str(value)
