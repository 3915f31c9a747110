"""What every command knows: the home or the release on Kubernetes, the registry, who is asking."""

from __future__ import annotations

import getpass
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import click

from controlplane.core.errors import ControlPlaneError, InvalidInput, Unavailable
from controlplane.local.home import Home

if TYPE_CHECKING:
    from controlplane.cli.cluster.api import Api
    from controlplane.cli.cluster.release import Release
    from controlplane.registry import Registry

HOME_VARIABLE, REGISTRY_VARIABLE, ACTOR_VARIABLE = "CTL_HOME_DIR", "CTL_REGISTRY", "CTL_ACTOR"
CONTEXT_VARIABLE, NAMESPACE_VARIABLE, RELEASE_VARIABLE = "CTL_CONTEXT", "CTL_NAMESPACE", "CTL_RELEASE"
DEFAULT_HOME = Path(".ctl")


def require(home: Home) -> None:
    """Raise Unavailable where there is no home: most often, it is another working directory's."""
    if not home.root.is_dir():
        raise Unavailable(
            f"there is no home {home.root.absolute()}",
            remedy=f"`ctl up` makes one; another is named with --home or {HOME_VARIABLE}, "
            f"a registry without one with --registry or {REGISTRY_VARIABLE}",
        )


class Reads(Protocol):
    """Asks the controller: the one of a home, or a release's leader. Used as a context manager."""

    def get(self, path: str) -> Any:
        """What a GET answers, as plain data. Raises the controller's own error, or Unavailable."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...


class Gateway(Protocol):
    """The way to a gateway, for as long as it is held open."""

    @property
    def address(self) -> str:
        """Host and port for gRPC."""
        ...

    @property
    def shown(self) -> str:
        """The address that clients use."""
        ...

    @property
    def failure(self) -> ControlPlaneError | None:
        """Why nothing gets there, where that is known."""
        ...


@dataclass(frozen=True, slots=True)
class HomeGateway:
    """A gateway that is reached without a bridge."""

    address: str
    failure: ControlPlaneError | None = None

    @property
    def shown(self) -> str:
        """See Gateway."""
        return self.address


@dataclass(slots=True)
class Target:
    """Which release on Kubernetes is meant. `typed`: the options among them that were typed."""

    context: str | None = None
    namespace: str | None = None
    release: str | None = None
    kubeconfig: Path | None = None
    typed: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Context:
    """The global options. Nothing is opened before it is asked for."""

    home: Home
    registry_url: str | None = None
    target: Target = field(default_factory=Target)
    home_typed: bool = False
    _api: Api | None = None
    _release: Release | None = None

    @property
    def on_kubernetes(self) -> bool:
        """Whether a release on Kubernetes is meant. Raises InvalidInput where that isn't clear."""
        target = self.target
        typed = sorted(target.typed)
        if self.home_typed and typed:
            raise InvalidInput(
                "--home is a system on this machine, the other one on Kubernetes",
                field=" and ".join(typed),
                remedy="leave one of them out",
            )
        if self.home_typed:  # and what is in the environment is not for this time
            return False
        if target.context is not None or target.kubeconfig is not None:
            return True
        if typed:
            raise InvalidInput(
                "without a context, the system on this machine is meant",
                field=" and ".join(typed),
                remedy=f"name the cluster too: --context NAME, or {CONTEXT_VARIABLE}",
            )
        return False

    def api(self) -> Api:
        """The cluster that is meant, and the namespace there. Raises InvalidInput."""
        if self._api is None:
            from controlplane.cli.importing import importing

            with importing():
                from controlplane.cli.cluster.api import Api

            target = self.target
            self._api = Api(kubeconfig=target.kubeconfig, context=target.context, namespace=target.namespace)
        return self._api

    def release(self) -> Release:
        """The release that is meant. Raises NotFound, and InvalidInput where several could be."""
        if self._release is None:
            api = self.api()
            from controlplane.cli.cluster.release import find_release

            self._release = find_release(api, self.target.release)
        return self._release

    def refuse_kubernetes(self, command: str, remedy: str) -> None:
        """For what there is on one machine only. Raises InvalidInput."""
        if self.on_kubernetes:
            raise InvalidInput(
                f"`ctl {command}` is for the system on this machine; on Kubernetes, Helm does that",
                field="--context" if self.target.context is not None else "--kubeconfig",
                remedy=f"{remedy} (a system on this machine is meant without --context, --kubeconfig and "
                f"{CONTEXT_VARIABLE})",
            )

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
        if self.on_kubernetes:
            return self.release().registry()
        require(self.home)
        system = load_system(self.home)
        return system.registry if system is not None else str(self.home.registry)

    def reader(self) -> Reads:
        """The controller of this home, or of the release. Raises Unavailable when there is none."""
        from controlplane.client.reader import Reader

        if self.on_kubernetes:
            from controlplane.cli.cluster.reading import LeaderReader

            return LeaderReader(self.release())
        require(self.home)
        return Reader.of(self.home)

    @contextmanager
    def gateway(self, address: str | None = None) -> Iterator[Gateway]:
        """The gateway at `address`, or of this home, or of the release. Raises Unavailable when there is none."""
        if address is not None:
            yield HomeGateway(address)
        elif self.on_kubernetes:
            from controlplane.cli.cluster.reading import open_gateway

            with open_gateway(self.release()) as gateway:
                yield gateway
        else:
            from controlplane.cli.addresses import gateway_addresses

            require(self.home)
            yield HomeGateway(gateway_addresses(self.home).grpc)

    @property
    def has_registry(self) -> bool:
        """Whether `registry` would find one: it is named, or there is a home or a release."""
        return self.registry_url is not None or self.on_kubernetes or self.home.root.is_dir()

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
