"""Reads Triton's `/metrics` page into counters per model version.

Durations there are in microseconds, summed over successful requests; GPU instances report one series for each GPU, so
series are added up. A series that is absent is absent here too: it is not zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from prometheus_client.parser import text_string_to_metric_families

from controlplane.core.names import Key

FAILURES = "nv_inference_request_failure"
NOT_RUN = frozenset({"REJECTED", "CANCELED"})
"""Reasons of failures of what was never executed: it waited for too long, or nobody waits for it any more."""
FIELDS = {
    "nv_inference_request_success": "success",
    FAILURES: "failures",
    "nv_inference_count": "inferences",
    "nv_inference_exec_count": "executions",
    "nv_inference_request_duration_us": "request_us",
    "nv_inference_queue_duration_us": "queue_us",
    "nv_inference_compute_input_duration_us": "compute_us",
    "nv_inference_compute_infer_duration_us": "compute_us",
    "nv_inference_compute_output_duration_us": "compute_us",
    "nv_cache_num_hits_per_model": "cache_hits",
    "nv_inference_pending_request_count": "pending",
}
"""By Triton's name of a series: the field that it counts in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """One model version's counters on one server, since the version was loaded. `…_us` in microseconds.

    `failures` is what a model raised, `not_run` what left its queue before that, as far as Triton counts it; an error
    that it answers is a `success` (triton-inference-server/server#8521). `inferences` counts items (a batch of 8 counts
    8), `executions` what the model was run; `compute_us` is input, infer and output together. `pending` is no counter:
    how many requests wait in the queue now.
    """

    success: float = 0.0
    failures: float = 0.0
    not_run: float = 0.0
    inferences: float = 0.0
    executions: float = 0.0
    request_us: float = 0.0
    queue_us: float = 0.0
    compute_us: float = 0.0
    cache_hits: float = 0.0
    pending: float = 0.0

    @property
    def ended(self) -> float:
        """Requests that were executed, with an error or without."""
        return self.success + self.failures

    def since(self, before: Counters) -> Counters:
        """What was counted since an earlier reading (`pending`: how many more wait). Where a counter went back, the
        version was loaded anew in between: then all that it counts is new."""
        if any(getattr(self, each) < getattr(before, each) for each in _COUNTED):
            return replace(self, pending=self.pending - before.pending)
        return Counters(**{each: getattr(self, each) - getattr(before, each) for each in (*_COUNTED, "pending")})


_COUNTED = tuple(each.name for each in fields(Counters) if each.name != "pending")


def field_of(series: str, reason: str) -> str | None:
    """The field that a series (with the `reason` of its label, if it has one) counts in; None for another one."""
    name = series.removesuffix("_total")
    return "not_run" if name == FAILURES and reason in NOT_RUN else FIELDS.get(name)


def parse_counters(text: str) -> Mapping[Key, Counters]:
    """The counters of every model version on a metrics page. Raises ValueError for text that is none."""
    found: dict[Key, Counters] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            field = field_of(sample.name, sample.labels.get("reason", ""))
            model, version = sample.labels.get("model"), sample.labels.get("version", "")
            if field is None or model is None or not version.isdecimal():
                continue
            key = Key(model, int(version))
            counters = found.get(key, Counters())
            found[key] = replace(counters, **{field: getattr(counters, field) + sample.value})
    return found
