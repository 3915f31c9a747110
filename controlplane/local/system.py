"""A local system's definition: its registry, gateway, fleets, source of metrics. Read from YAML, kept as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from controlplane.core.entry import is_name
from controlplane.core.errors import InvalidEntry, InvalidInput
from controlplane.core.models import FleetShape
from controlplane.core.snapshot import Settings
from controlplane.entry.document import EMPTY, read_document
from controlplane.entry.problems import problem_of
from controlplane.entry.wording import size_bytes
from controlplane.local import metrics
from controlplane.local.home import Home, replace_file
from controlplane.local.metrics import MetricsSettings
from controlplane.local.scaling import Limits, LimitsOrCount, ScalingSettings, windows
from controlplane.local.scaling import problems as scaling_problems


def _bytes(value: object) -> object:
    if not isinstance(value, str):
        return value
    size = size_bytes(value)
    return value if size is None else size  # what is no size is refused as no number, in words for sizes


Bytes = Annotated[int, BeforeValidator(_bytes), Ge(1)]
Port = Annotated[int, Ge(0), Le(65535)]


@validated(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class FleetSettings:
    """One fleet: how many replicas, what for, what each has for models, and when idle models leave."""

    name: str
    replicas: LimitsOrCount = Limits(min=1, max=1)
    scaling: ScalingSettings = ScalingSettings()
    memory_bytes: Bytes = 4 << 30
    disk_bytes: Bytes = 20 << 30
    gpus: Annotated[int, Ge(0)] = 0
    model_idle_s: Annotated[float, Gt(0)] | None = None
    min_loaded: Annotated[int, Ge(0)] = 0
    load_timeout_s: Annotated[float, Ge(1)] = 300.0
    default: bool = False

    def shape(self) -> FleetShape:
        """The fleet as the rest of the program knows it."""
        return FleetShape(
            name=self.name,
            min_replicas=self.replicas.min,
            max_replicas=self.replicas.max,
            goal=self.scaling.goal(),
            schedule=windows(self.scaling),
            down_after_s=self.scaling.down_after_s,
            idle_s=self.scaling.idle_s,
            model_idle_s=self.model_idle_s,
            min_loaded=self.min_loaded,
            memory_bytes=self.memory_bytes,
            disk_bytes=self.disk_bytes,
            gpus=self.gpus,
            load_timeout_s=self.load_timeout_s,
            default=self.default,
        )


@validated(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ControllerSettings:
    """The controller: its port (0: any free one), how often it looks at the registry, its times in seconds, and the
    budget of all fleets together."""

    port: Port = 0
    poll_s: Annotated[float, Ge(0.05)] = 0.5
    drain_s: Annotated[float, Ge(0)] = 30.0
    warm_s: Annotated[float, Ge(0)] = 600.0
    max_replicas: Annotated[int, Ge(1)] | None = None
    max_gpus: Annotated[int, Ge(0)] | None = None

    def settings(self) -> Settings:
        """The times and budgets as the rest of the program knows them."""
        return Settings(
            drain_s=self.drain_s, warm_s=self.warm_s, max_replicas=self.max_replicas, max_gpus=self.max_gpus
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A local system. `registry` is a path or an s3:// address; `gateway` holds the gateway's own settings."""

    registry: str
    fleets: tuple[FleetSettings, ...] = (FleetSettings(name="default"),)
    gateway: Mapping[str, Any] = field(default_factory=dict)
    controller: ControllerSettings = field(default_factory=ControllerSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)


@validated(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class _SystemFile:
    registry: str | None = None
    fleets: tuple[FleetSettings, ...] = (FleetSettings(name="default"),)
    gateway: dict[str, Any] = field(default_factory=dict)
    controller: ControllerSettings = field(default_factory=ControllerSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)


def read_system(path: Path | None, home: Home) -> System:
    """The system that a YAML file defines; without one, a directory registry and one fleet of one replica.

    A registry or a program given as a relative path is relative to the file. Raises InvalidInput or InvalidEntry.
    """
    document = EMPTY
    if path is not None:
        try:
            document = read_document(path.read_bytes(), str(path))
        except OSError as error:
            raise InvalidInput(f"{path} can't be read: {error.strerror}", remedy="name an existing file") from error
    subject = str(path or "the system")
    try:
        file = TypeAdapter(_SystemFile).validate_python(document.data)
    except ValidationError as error:
        problems = tuple(problem_of(each, document.lines, _SystemFile) for each in error.errors(include_url=False))
        raise InvalidEntry(subject, problems) from error
    _check_fleets(file.fleets, file.controller, subject)
    measured = metrics.located(file.metrics, path.parent if path is not None else Path())
    if found := tuple(metrics.problems(measured)):
        raise InvalidEntry(subject, found)
    registry = file.registry or str(home.registry.resolve())
    if path is not None and file.registry is not None and "://" not in file.registry:
        registry = str((path.parent / file.registry).resolve())
    return System(
        registry=registry, fleets=file.fleets, gateway=file.gateway, controller=file.controller, metrics=measured
    )


def _check_fleets(fleets: tuple[FleetSettings, ...], controller: ControllerSettings, subject: str) -> None:
    names = [fleet.name for fleet in fleets]
    problems = [
        InvalidInput(
            f"{name!r} can't name a fleet",
            field=f"fleets[{index}].name",
            remedy="letters, digits, '-', '_' and '.', beginning with a letter or digit, at most 128",
        )
        for index, name in enumerate(names)
        if not is_name(name)
    ]
    for index, fleet in enumerate(fleets):
        problems += scaling_problems(fleet.replicas, fleet.scaling, f"fleets[{index}]")
    if not names:
        problems.append(InvalidInput("there is no fleet", field="fleets", remedy="define at least one"))
    problems += [
        InvalidInput(f"{name!r} is there twice", field="fleets", remedy="give each fleet a name of its own")
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    if sum(fleet.default for fleet in fleets) > 1:
        problems.append(
            InvalidInput("more than one fleet is the default", field="fleets", remedy="mark one `default: true`")
        )
    for name, what, budget, each in (
        ("max_replicas", "replicas", controller.max_replicas, [1] * len(fleets)),
        ("max_gpus", "GPUs", controller.max_gpus, [fleet.gpus for fleet in fleets]),
    ):
        if budget is not None:
            problems += _budget_problems(fleets, name, what, budget, each)
    if problems:
        raise InvalidEntry(subject, tuple(problems))


def _budget_problems(
    fleets: tuple[FleetSettings, ...], name: str, what: str, budget: int, each: list[int]
) -> Iterator[InvalidInput]:
    """Where a budget is less than what it has to be enough for; `each` replica of a fleet takes so much of it."""
    least = sum(fleet.replicas.min * takes for fleet, takes in zip(fleets, each, strict=True))
    if least > budget:
        text = f"{budget} {what} are less than the fleets' `min` needs, {least} in all"
        yield InvalidInput(text, field=f"controller.{name}", remedy="raise it, or lower `replicas.min`")
    for index, (fleet, takes) in enumerate(zip(fleets, each, strict=True)):
        if takes > budget > 0 and name == "max_gpus":  # 0: none for now
            text = f"a replica takes more than the {budget} GPUs of `controller.max_gpus`, so there could be none"
            yield InvalidInput(text, field=f"fleets[{index}].gpus", remedy="lower it, or raise the budget")
            continue
        for number, window in enumerate(fleet.scaling.schedule):
            if window.min is not None and window.min * takes > budget:
                yield InvalidInput(
                    f"at least {window.min} replicas take more than the {budget} {what} of `controller.{name}`",
                    field=f"fleets[{index}].scaling.schedule[{number}].min",
                    remedy="lower it, or raise the budget",
                )


def save_system(system: System, home: Home) -> None:
    """Leave the definition in the home, where the controller and the other commands find it."""
    replace_file(home.system_file, TypeAdapter(System).dump_json(system, indent=2).decode() + "\n")


def load_system(home: Home) -> System | None:
    """The definition that `ctl up` left in the home; None before the first `ctl up`."""
    try:
        return TypeAdapter(System).validate_json(home.system_file.read_bytes())
    except FileNotFoundError:
        return None
