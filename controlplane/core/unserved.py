"""Why versions that may be asked for are not served."""

from __future__ import annotations

from collections.abc import Mapping

from controlplane.core.census import Census
from controlplane.core.names import Key, Reason
from controlplane.core.placement.terms import Placement
from controlplane.core.snapshot import Snapshot


def unserved(snapshot: Snapshot, census: Census, placements: Mapping[str, Placement]) -> Mapping[Key, Reason]:
    """Why they are not, by version; of some that are as well, such as have found no further place."""
    why: dict[Key, Reason] = dict(census.blocked)
    for placement in placements.values():
        why.update(placement.unplaced)
    for key, replicas in census.copies.items():
        if census.ready.get(key):
            continue
        for replica in replicas:
            copy = replica.copies[key]
            if copy.state == "failed":
                why[key] = Reason(code="LOAD_FAILED", text=f"{key} failed on {replica.name}: {copy.reason}")
            else:
                doing = f"{copy.state}{': ' + copy.reason if copy.reason else ''}"
                why.setdefault(key, Reason(code="LOADING", text=f"{key} on {replica.name}: {doing}"))
    for name, record in snapshot.fleets.items():
        for each in record.quarantines:
            key = Key(each.model, each.version)
            if key in census.quarantined[name] and census.fleet(key) == name:
                text = f"{key} is quarantined on fleet {name} (`ctl unquarantine {key}` lifts it): {each.reason}"
                why[key] = Reason(code="QUARANTINED", text=text)
    return why
