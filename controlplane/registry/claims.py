"""Whose registry it is. A control plane claims it under its name; of two installations of one name, the same release
on two clusters say, the one that is there keeps it: whoever comes says so in the claim, waits, and is refused if it
lives."""

from __future__ import annotations

from dataclasses import replace

from controlplane.core.errors import Conflict
from controlplane.registry.documents import ControlPlane
from controlplane.registry.layout import CONTROL_PLANE as KEY


def of_release(namespace: str, release: str) -> str:
    """The name of a release's control plane. Another cluster may have one of the same name."""
    return f"kubernetes:{namespace}/{release}"


def contended(present: ControlPlane | None, name: str, installation: str) -> ControlPlane | None:
    """The claim in which `installation` says that it wants the registry; as it is where nobody else has it."""
    if present is None or present.id != name or not _others(present, installation):
        return present
    return replace(present, contender=installation, refused="")


def check_contest(present: ControlPlane | None, installation: str, url: str) -> None:
    """Raises Conflict when whoever has the registry lives: it has refused the contender, or changed the claim."""
    if present is not None and _others(present, installation) and present.contender != installation:
        raise Conflict(
            f"{url} is in use by another installation of {present.id} (its controllers' Deployment has the uid "
            f"{present.installation}), perhaps on another cluster",
            field="registry",
            remedy="give each a prefix of its own; to move here, end that one: half a minute later this one takes over",
        )


def refused(present: ControlPlane, epoch: int) -> ControlPlane:
    """The claim in which the controller of this epoch refuses whoever wants the registry."""
    if present.epoch != epoch or not present.contender:
        return present
    return replace(present, contender="", refused=present.contender)


def raised(present: ControlPlane | None, name: str, installation: str, url: str) -> ControlPlane:
    """The claim of a new controller of the control plane `name`. `installation` is empty where that can't be known.
    Raises Conflict when the registry belongs to another control plane, or to an installation that lives."""
    if present is not None and present.id != name:
        raise Conflict(
            f"{url} belongs to another control plane ({present.id})",
            field="registry",
            remedy=f"use another prefix; if that one is gone for good, remove {KEY} there",
        )
    check_contest(present, installation, url)
    known = present.installation if present is not None else ""
    return ControlPlane(
        id=name, epoch=1 + (present.epoch if present is not None else 0), installation=installation or known
    )


def _others(present: ControlPlane, installation: str) -> bool:
    """Whether it is another installation's. Claims of earlier releases, and of homes, say none."""
    return bool(installation and present.installation) and present.installation != installation
