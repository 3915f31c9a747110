"""Waiting for somebody else, in tasks that a third may cancel."""

from __future__ import annotations

import asyncio


def cancelled() -> bool:
    """Whether somebody cancels this task. To who awaits a call of grpc.aio, closing its channel looks the same."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def set_within(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait for an event; whether it was set in time."""
    try:
        async with asyncio.timeout(timeout_s):  # unlike wait_for, it never swallows a cancellation
            await event.wait()
    except TimeoutError:
        return False
    return True
