"""Calls over a channel that somebody else may close."""

from __future__ import annotations

import asyncio


def cancelled() -> bool:
    """Whether somebody cancels this task. To who awaits a call of grpc.aio, closing its channel looks the same."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
