"""Says once, in a sentence, that a store is asked again: the log's line for each attempt is not for people."""

from __future__ import annotations

from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from controlplane.cli.output import note


def tell_retries(of: str) -> None:
    """From now on in this process, the first retry is told, as one of `of` (an address)."""
    told = False

    def tell(details: RetryDetails) -> None:
        nonlocal told
        if not told:
            told = True
            note(f"{of} can't be reached just now; trying again …")

    set_on_retry_hooks([tell])
