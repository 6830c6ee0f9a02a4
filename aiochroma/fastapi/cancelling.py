"""Requests whose client has gone are cancelled."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import anyio
from fastapi import Request, Response
from fastapi.routing import APIRoute

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

__all__ = ["CancellingRoute"]

_CLIENT_CLOSED_REQUEST = 499

T = TypeVar("T")


class CancellingRoute(APIRoute):
    """Cancels a request's handler when its client disconnects, so that what is still queued for it never runs.

    Use it with ``APIRouter(route_class=CancellingRoute)``, for asynchronous handlers. Not for those that read the body as a
    stream themselves. A write that has begun completes.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the handler."""
        handler = super().get_route_handler()

        async def cancelling(request: Request) -> Response:
            # The body is read first: afterwards the only message that can come is the disconnect.
            await request.body()
            response = await _while_connected(request, handler(request))
            return Response(status_code=_CLIENT_CLOSED_REQUEST) if response is None else response

        return cancelling


async def _while_connected(request: Request, work: Coroutine[object, object, T]) -> T | None:
    """Await something in this task, and cancel it when the client disconnects; None then."""
    result: T | None = None
    failure: Exception | None = None

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        try:
            result = await work
        except Exception as error:  # noqa: BLE001 - raised again outside of the group, which would wrap it
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result
