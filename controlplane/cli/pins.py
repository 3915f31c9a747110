"""The versions of an ensemble's steps: chosen when it is registered, and told."""

from __future__ import annotations

from controlplane.core.entry import Entry
from controlplane.core.errors import NotFound
from controlplane.registry import Registry


def pin(registry: Registry, entry: Entry) -> tuple[Entry, list[str]]:
    """`entry` with a version for each step, and a sentence for each that was chosen here.

    It is what is stable at this moment, or was last; where nothing ever was, the newest. Raises NotFound for a model
    without versions.
    """
    from controlplane.entry.build import pin_steps

    facts = []

    def choose(name: str) -> int | None:
        try:
            model = registry.model(name)
        except NotFound:
            return None
        newest = max((each.number for each in model.versions if each.deleted_at is None), default=None)
        number: int | None
        if model.stable is not None:
            number, why = model.stable, "which is stable"
        elif model.previous_stable is not None:
            number, why = model.previous_stable, f"which was stable until {name} was retired"
        else:
            number, why = newest, f"the newest, since no version of {name} is stable"
        if number is not None:
            facts.append(f"step {name} is pinned to {name}@{number}, {why}")
        return number

    return pin_steps(entry, choose), facts
