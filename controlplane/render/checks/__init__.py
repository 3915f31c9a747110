"""What Triton refuses without a word about where, or takes and then does something else, or dies of.

Each check is a function from a `Case` to findings; `CHECKS` is the table of all of them. They look at the finished
configuration, so that what came in through the raw `config` is checked like the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from controlplane.core.errors import InvalidInput
from controlplane.render.checks import ensemble, files, instances, scheduling, server, tensors, warmup
from controlplane.render.checks.before import findings_before
from controlplane.render.checks.case import Case

CHECKS: tuple[Callable[[Case], Iterator[InvalidInput]], ...] = (
    server.owned_fields,
    server.server_version,
    server.raw_hazards,
    tensors.names,
    tensors.types_and_dims,
    tensors.reshapes,
    tensors.formats,
    tensors.backend_names,
    tensors.ragged,
    scheduling.batch_size,
    scheduling.dynamic_batching,
    scheduling.priorities,
    scheduling.sequences,
    scheduling.scheduler,
    scheduling.response_cache,
    scheduling.decoupled,
    instances.kinds,
    instances.gpus,
    instances.rate_limits,
    instances.accelerators,
    instances.cuda_graphs,
    files.model_file,
    files.labels,
    files.reserved,
    warmup.batch_sizes,
    warmup.inputs,
    warmup.data_files,
    ensemble.foreign_fields,
    ensemble.wiring,
    ensemble.steps,
)


def findings(case: Case) -> Iterator[InvalidInput]:
    """Everything that is wrong with a rendered configuration, in the table's order."""
    for check in CHECKS:
        yield from check(case)


__all__ = ["CHECKS", "Case", "findings", "findings_before"]
