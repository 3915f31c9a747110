"""What every command knows: the home, the registry, who is asking."""

from __future__ import annotations

import getpass
import logging
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from controlplane.core.errors import Unavailable
from controlplane.local.home import Home

if TYPE_CHECKING:
    from controlplane.client.reader import Reader
    from controlplane.registry import Registry

HOME_VARIABLE, REGISTRY_VARIABLE, ACTOR_VARIABLE = "CTL_HOME_DIR", "CTL_REGISTRY", "CTL_ACTOR"
DEFAULT_HOME = Path(".ctl")


def require(home: Home) -> None:
    """Raise Unavailable where there is no home: most often, it is another working directory's."""
    if not home.root.is_dir():
        raise Unavailable(
            f"there is no home {home.root.absolute()}",
            remedy=f"`ctl up` makes one; another is named with --home or {HOME_VARIABLE}, "
            f"a registry without one with --registry or {REGISTRY_VARIABLE}",
        )


@dataclass(slots=True)
class Context:
    """The global options. Nothing is opened before it is asked for."""

    home: Home
    registry_url: str | None = None

    def registry(self) -> Registry:
        """The registry that the options, the environment or the home name; else the one in the home itself."""
        from controlplane.logs import configure
        from controlplane.registry import open_registry

        configure(level=logging.WARNING)
        registry = open_registry(self.find_registry())
        if registry.url.startswith("s3://"):
            from controlplane.cli.retries import tell_retries

            tell_retries(registry.url)
        return registry

    def find_registry(self) -> str:
        """The registry's address. Raises Unavailable where none is named and there is no home."""
        from controlplane.local.system import load_system

        if self.registry_url is not None:
            return self.registry_url
        require(self.home)
        system = load_system(self.home)
        return system.registry if system is not None else str(self.home.registry)

    def reader(self) -> Reader:
        """The controller of this home. Raises Unavailable when there is none."""
        from controlplane.client.reader import Reader

        require(self.home)
        return Reader.of(self.home)

    @property
    def has_registry(self) -> bool:
        """Whether `registry` would find one: it is named, or there is a home."""
        return self.registry_url is not None or self.home.root.is_dir()

    @property
    def actor(self) -> str:
        """Who is asking, for the history."""
        given = os.environ.get(ACTOR_VARIABLE)
        if given:
            return given
        try:
            user = getpass.getuser()
        except (KeyError, OSError):
            user = str(os.getuid())
        return f"{user}@{socket.gethostname()}"


pass_context = click.make_pass_decorator(Context)
