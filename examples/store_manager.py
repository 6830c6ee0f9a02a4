"""A manager for a long-lived store: health, reset, backup, recovery, missing embeddings, cleanup at exit.

python examples/store_manager.py serve --path ./store        # until Ctrl-C or SIGTERM
python examples/store_manager.py story --path ./story        # a store's life: damage, repair, restore; takes a few seconds
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiochroma
from aiochroma.ops import doctor, restore

BACKUPS_KEPT = 3
SECONDS_BETWEEN_CHECKS = 10.0


class StoreManager:
    """One store, opened once per process, looked after while it is open.

    Args:
        path: The database directory. A second process that opens it is refused, and told who has it.
        backups: Where the backups go.
        durable: Keep every vector in the log as well, so that a lost index can be rebuilt; False takes less room.
    """

    def __init__(self, path: Path, backups: Path, *, durable: bool = True) -> None:
        self.path, self.backups, self.durable = path, backups, durable
        self._memory: aiochroma.Memory | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> StoreManager:
        memory = await self._stack.enter_async_context(aiochroma.Memory(self.path, durable=self.durable))
        self._memory = memory
        # A broken index is set aside and rebuilt while the store opens; this says what had to be done.
        recovery = memory.client.recovery
        for entry in recovery.collections if recovery else ():
            print(
                f"recovered {entry.label!r}: {entry.from_log + entry.from_index} vectors, {len(entry.missing)} missing"
            )
        return self

    async def __aexit__(self, *error: object) -> None:
        # Completes what was submitted, closes the files, and waits for the thread. Without it the exit hook would do the same.
        await self._stack.aclose()

    @property
    def memory(self) -> aiochroma.Memory:
        assert self._memory is not None, "use `async with`"
        return self._memory

    async def checked(self) -> aiochroma.Memory:
        """Return the memory, healthy: a store that does not answer gets a new connection first."""
        health = await self.memory.client.health()
        if health.status != "ok":
            print(f"unhealthy ({health.error}), connecting again")
            await self.reset()
        return self.memory

    async def reset(self) -> None:
        """Close the database and open it again. Requests of others wait meanwhile; none fails, none is lost."""
        await self.memory.client.reset_connection()

    async def backup(self) -> Path:
        """Copy the store while it is in use, prove that the copy is complete, and delete the oldest."""
        report = await self.memory.client.backup(self.backups, keep=BACKUPS_KEPT)
        print(f"backup of {report.records} records; writing waited {report.paused_ms:.0f} ms for it")
        return Path(report.path)

    async def forget_everything(self, namespace: str) -> int:
        """Do something dangerous: not without a backup."""
        await self.backup()
        return await self.memory.forget_namespace(namespace)

    async def look_after_it(self) -> None:
        """Check the store again and again, until cancelled."""
        while True:
            memory = await self.checked()
            stats = memory.stats()
            print(f"healthy: {await memory.count()} memories, {stats.pending} requests waiting", flush=True)
            await asyncio.sleep(SECONDS_BETWEEN_CHECKS)


async def serve(path: Path, backups: Path) -> None:
    """Keep the store open until the process is asked to end, then close it cleanly."""
    asked = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, asked.set)
    try:
        async with StoreManager(path, backups) as manager:
            looking = asyncio.create_task(manager.look_after_it())
            await asked.wait()
            looking.cancel()
            await asyncio.wait([looking])
    except aiochroma.DatabaseInUseError as error:
        raise SystemExit(f"Not started: {error}") from error
    print("closed")


# -- a store's life, told with real damage -------------------------------------------------------------------------------------


def damage(path: Path, pattern: str, keep: int) -> None:
    """Cut files short, as a full disk or a crash in the middle of writing them would."""
    for file in path.glob(pattern):
        file.write_bytes(file.read_bytes()[:keep])


def notes(count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"note-{number}", "text": f"Note {number}: shelf {number % 40} holds box {number}."}
        for number in range(count)
    ]


async def story(path: Path, backups: Path) -> None:
    """Let a store live through what happens to stores."""
    async with StoreManager(path, backups) as manager:
        await manager.memory.remember_many(notes(1500))
        backup = await manager.backup()
        await manager.reset()
        print("after a reset:", await (await manager.checked()).count())

    print(
        "\n-- the index files are cut short; the log, and what can still be read of them, have every vector"
    )
    damage(path, "*/header.bin", 10)
    async with StoreManager(path, backups) as manager:
        print("found again:", (await manager.memory.recall("which shelf holds box 1234?"))[0].text)

    print(
        "\n-- the index is gone, in a store whose log is kept short: the memory's own records have every vector"
    )
    frugal = path.with_name(f"{path.name}-frugal")
    async with StoreManager(frugal, backups / "frugal", durable=False) as manager:
        await manager.memory.remember_many(notes(1500))
    damage(frugal, "*/*.bin", 0)
    # The doctor works on closed stores. It makes a copy before it changes anything.
    report = await doctor(frugal, repair=True, reembed_missing=True)
    print("\n".join(report.actions))
    async with StoreManager(frugal, backups / "frugal", durable=False) as manager:
        print("found again:", (await manager.memory.recall("which shelf holds box 77?"))[0].text)

    print("\n-- the SQLite file is overwritten; nothing repairs that, so the backup takes its place")
    damage(path, "chroma.sqlite3", 4096)
    try:
        async with StoreManager(path, backups):
            pass
    except aiochroma.DatabaseCorruptError as error:
        print(f"refused: {type(error).__name__}")
    kept = await restore(backup, path)
    print("restored; the former database is kept:", kept is not None and kept.is_dir())
    async with StoreManager(path, backups) as manager:
        print("memories:", await manager.memory.count())
        print("forgotten, after a backup:", await manager.forget_everything("default"))


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("command", choices=["serve", "story"])
    arguments.add_argument("--path", type=Path, default=Path("./store"))
    given = arguments.parse_args()
    folder = given.path.with_name(f"{given.path.name}-backups")
    asyncio.run((serve if given.command == "serve" else story)(given.path, folder))
