"""Keeps the controller's copy of the registry current: documents by polling, manifests as they are referred to."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping

import structlog

from controlplane.backoff import backoff_s
from controlplane.core.errors import ControlPlaneError, NotLeader
from controlplane.core.models import Manifest, Model
from controlplane.registry.poll import RegistryPoll
from controlplane.registry.registry import Registry
from controlplane.server.memory import Memory, referred_versions

log = structlog.get_logger(__name__)

PARALLEL_READS = 16
RETRY_MIN_S, RETRY_MAX_S = 0.5, 10.0
CONTESTED_S = 600.0
"""For so long is told who wanted the registry: a pod that ends again and again tries every five minutes."""


class RegistryWatch:
    """Polls the registry into `memory`. While it can't be read, what was known stays known."""

    def __init__(self, registry: Registry, memory: Memory, *, poll_s: float, changed: Callable[[], None]) -> None:
        self._registry = registry
        self._memory = memory
        self._poll = RegistryPoll(registry)
        self._poll_s = poll_s
        self._changed = changed
        self._now = asyncio.Event()
        self._failures = 0
        self._took_s = 0.0
        self._contested = ("", 0.0)
        self._unreadable: dict[str, str] = {}

    async def first(self) -> None:
        """Read everything once; waits while the registry can't be reached."""
        failures = 0
        while not await self._look():
            failures += 1
            await asyncio.sleep(backoff_s(failures, RETRY_MIN_S, RETRY_MAX_S))

    async def run(self, epoch: int) -> None:
        """Poll until cancelled. Raises NotLeader when another controller has taken over."""
        while True:
            with contextlib.suppress(TimeoutError):
                # A large or slow registry is looked at less often: polling takes a tenth of the time at most.
                async with asyncio.timeout(max(self._poll_s, 9 * self._took_s)):
                    await self._now.wait()
            self._now.clear()
            if await self._look():
                await self._check_leadership(epoch)

    def look_now(self) -> None:
        """Do not wait for the next turn: something was just written."""
        self._now.set()

    async def _check_leadership(self, epoch: int) -> None:
        try:
            present = await asyncio.to_thread(self._registry.control_plane)
            if present is None:
                return
            if present.epoch > epoch:
                raise NotLeader(
                    f"another controller has taken over the registry (epoch {present.epoch}, ours is {epoch})",
                    remedy="one registry prefix serves one control plane",
                )
            if present.contender:
                await asyncio.to_thread(self._registry.defend, epoch)
                self._contested = (present.contender, time.monotonic())
                log.warning(
                    "another installation of this name wants the registry, and is refused", contender=present.contender
                )
        except NotLeader:
            raise
        except ControlPlaneError:
            return  # it could be read a moment ago; the next turn tells

    @property
    def problem(self) -> str:
        """Who else has lately wanted the registry, if somebody has."""
        contender, at = self._contested
        if not contender or time.monotonic() - at > CONTESTED_S:
            return ""
        return (
            f"another installation of this name has wanted {self._registry.url} and was refused (its controllers' "
            f"Deployment has the uid {contender}, perhaps on another cluster): give it a prefix of its own"
        )

    async def _look(self) -> bool:
        started = time.monotonic()
        try:
            changes = await asyncio.to_thread(self._poll.poll)
        except ControlPlaneError as error:
            self._failures += 1
            if self._failures == 1:
                log.warning("the registry can't be read; serving goes on as it is", reason=str(error))
            return False
        self._took_s = time.monotonic() - started
        if self._failures:
            log.info("the registry can be read again", attempts=self._failures)
        self._failures = 0
        memory = self._memory
        models = {**memory.models, **{model.name: model for model in changes.models}}
        read = await self._read_manifests(models)
        memory.models.update(models)  # only now: a version is known together with what it says
        for name in changes.removed_models:
            memory.models.pop(name, None)
        for record in changes.fleets:
            memory.fleets[record.shape.name] = record
        for name in changes.removed_fleets:
            memory.fleets.pop(name, None)
        if changes.problems != memory.problems:
            for key, text in changes.problems.items():
                if memory.problems.get(key) != text:
                    log.warning("a registry document can't be used", key=key, reason=text)
            memory.problems = dict(changes.problems)
        if read or changes.models or changes.removed_models or changes.fleets or changes.removed_fleets:
            self._changed()
        return True

    async def _read_manifests(self, models: Mapping[str, Model]) -> int:
        """Fetch what is referred to and not known yet; forget what nobody refers to any more."""
        wanted = set()
        for model in models.values():
            numbers = referred_versions(model)
            wanted |= {each.digest for each in model.versions if each.number in numbers}
        for report, _ in self._memory.reports.values():
            wanted |= {copy.digest for copy in report.copies}
        read = await self._fetch(wanted)
        for digest in list(wanted):  # an ensemble refers to its steps
            manifest = self._memory.manifests.get(digest)
            for step in manifest.entry.ensemble if manifest else ():
                step_model = models.get(step.model_name)
                version = step_model.version(step.model_version) if step_model and step.model_version else None
                if version is not None:
                    wanted.add(version.digest)
        read += await self._fetch(wanted)
        for digest in set(self._memory.manifests) - wanted:
            del self._memory.manifests[digest]
        return read

    async def _fetch(self, wanted: set[str]) -> int:
        missing = sorted(wanted - set(self._memory.manifests))
        limit = asyncio.Semaphore(PARALLEL_READS)

        async def fetch(digest: str) -> bool:
            async with limit:
                try:
                    manifest: Manifest = await asyncio.to_thread(self._registry.manifest, digest)
                except ControlPlaneError as error:
                    if self._unreadable.get(digest) != str(error):
                        log.warning("a version's manifest can't be read", digest=digest, reason=str(error))
                    self._unreadable[digest] = str(error)
                    return False
            self._memory.manifests[digest] = manifest
            self._unreadable.pop(digest, None)
            return True

        return sum(await asyncio.gather(*(fetch(digest) for digest in missing)))
