"""The server process of a directory, ``python -m aiochroma.mcp``; the first session that needs it starts it."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from aiochroma._logging import private_log_file
from aiochroma.client.options import PersistentOptions
from aiochroma.host.reaching import detach, meet
from aiochroma.host.wire import Codec
from aiochroma.mcp import MCP_LOG

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from aiochroma.host.wire import Plain

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a server that a session starts, which says what it is told over two pipes."""
    parser = argparse.ArgumentParser(
        prog="python -m aiochroma.mcp", description="The server process of a directory."
    )
    parser.add_argument("directory")
    parser.add_argument("--detached", nargs=2, type=int, metavar=("TOLD", "READY"), required=True)
    given = parser.parse_args(arguments)
    values, announce = detach(*given.detached)

    def listening() -> None:
        _log_into(Path(given.directory))
        announce(None)

    try:
        with ThreadPoolExecutor(1) as thread:
            # A host that has to be started begins while the protocol's package is imported: either takes a second.
            host = thread.submit(_meet, given.directory)
            asyncio.run(_serve(given.directory, float(values["idle"]), host, listening))
    except BaseException as error:
        announce(error)
        raise
    return 0


class _Greeting(Codec):
    """Reads the host's welcome, and not what comes behind it, which is made of Chroma's types."""

    def decode(self, data: bytes) -> Plain:  # noqa: ARG002 - as its base class has it
        """Return None."""
        return None


def _meet(directory: str) -> socket.socket:
    """Be welcomed by the host of a directory, without a need for Chroma.

    Raises:
        AiochromaError: It cannot be reached, or serves with other options.
    """
    options = PersistentOptions(
        path=directory, process="shared", durable=True, allow_missing_vectors=True
    ).resolve()
    return meet(options.location, options.options, _Greeting(), lambda: False).connected


async def _serve(directory: str, idle: float, host: Future[socket.socket], ready: Callable[[], None]) -> None:
    from aiochroma.mcp.server import McpHost
    from aiochroma.memory.memory import Memory

    memory = Memory(directory, process="shared")
    met = await asyncio.wrap_future(host)
    # Chroma is imported behind the first answers, for which it is not needed. Whatever asks the memory waits for it.
    opening = asyncio.create_task(memory.open())
    opening.add_done_callback(lambda _: met.close())
    try:
        await McpHost(memory, directory, idle).run(ready)
    finally:
        await asyncio.gather(opening, return_exceptions=True)
        await memory.close()


def _log_into(directory: Path) -> None:
    """Write the log beside the data: what this process prints is not read."""
    handler = private_log_file(directory / MCP_LOG)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    logging.getLogger("aiochroma").setLevel(logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
