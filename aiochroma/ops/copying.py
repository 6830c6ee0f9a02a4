"""Copying one database: looked at as a whole before the first write, then collection by collection, each verified.

While a copy is under way a collection of its own at the destination notes which collections are made by it, and from which.
It is written before they are and deleted when all of them are complete; so a run that was killed leaves a note, and the next
one knows its own. No collection that is copied is marked itself: Chroma does not let metadata be taken away again.

Importing this module imports chromadb and numpy; that happens after a client was opened.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiochroma._errors import MigrationError
from aiochroma.disk.schema import json_object
from aiochroma.ops.migrate import CopiedCollection
from aiochroma.ops.sides import FullRecord, fields_that_differ, make_like, space_of, unlike, unlike_to_merge

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiochroma.ops.sides import Model, Side

__all__ = ["NOTE", "DatabaseCopy"]

NOTE = "aiochroma-migration"
"""The collection at the destination that exists while a copy is incomplete."""

_NOTE_KEY = "aiochroma:migrating"
_EXAMPLES = 5


@dataclass
class _Plan:
    """One collection.

    Attributes:
        model: Chroma's description at the source.
        there: Chroma's description at the destination, or None where it has to be made.
        merge: The destination's collection was there before; records are added to it.
        done: Everything is there already.
    """

    model: Model
    there: Model | None = None
    merge: bool = False
    done: bool = False


class _Comparison:
    """Counts what differs, and keeps a few ids of each kind."""

    def __init__(self, space: str) -> None:
        self._space = space
        self._examples: dict[str, list[str]] = {}
        self.found = self.missing = self.different = self.extra = 0

    def add(self, here: dict[str, FullRecord], there: dict[str, FullRecord]) -> None:
        """Compare a page."""
        for id, record in here.items():
            if id not in there:
                self.missing += 1
                self._note("are missing", id)
                continue
            self.found += 1
            fields = fields_that_differ(record, there[id], space=self._space)
            if fields:
                self.different += 1
                self._note(f"differ in {', '.join(fields)}", id)

    def add_extra(self, ids: list[str], count: int) -> None:
        """Note records that only the destination has."""
        self.extra += count
        for id in ids[:_EXAMPLES]:
            self._note("are at the destination only", id)

    def lines(self) -> list[str]:
        """Say what differs, one sentence for each kind."""
        counts = {"are missing": self.missing, "are at the destination only": self.extra}
        return [
            (f"{counts[kind]} " if kind in counts else "")
            + f"records {kind}, for example {', '.join(map(repr, ids))}"
            for kind, ids in self._examples.items()
        ]

    def _note(self, kind: str, id: str) -> None:
        ids = self._examples.setdefault(kind, [])
        if len(ids) < _EXAMPLES:
            ids.append(id)


class DatabaseCopy:
    """One database on its way.

    Args:
        source: The store to copy from.
        target: The store to copy to; the database exists there.
        merge: Add to collections that hold something else.
        verify: Compare both sides after copying.
        progress: Called with a stage, records done, and of how many.
        several: Whether messages have to say which database is meant.
    """

    def __init__(
        self,
        source: Side,
        target: Side,
        *,
        merge: bool,
        verify: bool,
        progress: Callable[[str, int, int], None],
        several: bool,
    ) -> None:
        self._source = source
        self._target = target
        self._merge = merge
        self._verify = verify
        self._progress = progress
        self._prefix = f"{source.tenant}/{source.database}/" if several else ""
        self._plans: list[_Plan] = []
        self._noted: dict[str, str] = {}
        self._has_note = False

    @property
    def without_sparse(self) -> set[str]:
        """The collections whose sparse vectors the destination cannot have."""
        return self._source.left_out

    async def survey(self) -> list[str]:
        """Look at both sides without writing anything.

        Returns:
            One sentence for each collection that is in the way.

        Raises:
            MigrationError: The source itself is what an interrupted migration left.
        """
        here, there = await self._source.models(), await self._target.models_if_any()
        if NOTE in here:
            raise MigrationError(
                f"The source's database {self._source.tenant}/{self._source.database} is itself an incomplete copy: repeat "
                "the migration that began it first."
            )
        self._has_note = NOTE in there
        if self._has_note:
            self._noted = json_object((there[NOTE].metadata or {}).get(_NOTE_KEY))
        problems: list[str] = []
        for name, model in here.items():
            plan, reasons = await self._planned(model, there.get(name))
            self._plans.append(plan)
            problems.extend(f"{self._prefix}{name}: {reason}" for reason in reasons)
        return problems

    async def _planned(self, model: Model, there: Model | None) -> tuple[_Plan, list[str]]:
        if there is None:
            return _Plan(model), []
        if self._noted.get(model.name) == str(model.id):
            return _Plan(model, there), []
        differing = unlike(model, there)
        if not await self._target.count(there):
            # Nothing is lost by filling it; but what distance it has cannot be changed.
            return _Plan(model, there), differing
        if self._merge:
            return _Plan(model, there, merge=True), unlike_to_merge(model, there)
        if not differing:
            differing = await self._first_difference(model, there)
        return _Plan(model, there, done=not differing), differing

    async def _first_difference(self, model: Model, there: Model) -> list[str]:
        """Tell a finished copy from something else; the records are read to the first page that differs."""
        here, other = await self._source.count(model), await self._target.count(there)
        if here != other:
            return [f"it has {other} records at the destination and {here} at the source"]
        comparison, done = _Comparison(space_of(model)), 0
        async for page in self._source.pages(model):
            comparison.add(page, await self._target.records(there, list(page)))
            done += len(page)
            self._progress(f"look at {self._prefix}{model.name}", done, here)
            if comparison.lines():
                return comparison.lines()
        return []

    async def run(self) -> list[CopiedCollection]:
        """Copy what :meth:`survey` has planned, and compare."""
        await self._target.make_database()
        await self._write_note()
        copied = [await self._copy(plan) for plan in self._plans]
        # What differs is mended by another run, which has to know its own then.
        if self._has_note and not any(entry.differences for entry in copied):
            await self._target.submit("delete_collection", name=NOTE)
        return copied

    async def _write_note(self) -> None:
        own = {
            plan.model.name: str(plan.model.id) for plan in self._plans if not plan.merge and not plan.done
        }
        if not own:
            return
        metadata = {_NOTE_KEY: json.dumps({**self._noted, **own})}
        made = await self._target.submit("get_or_create_collection", name=NOTE, metadata=metadata)
        if made.metadata != metadata:
            await self._target.submit("_modify", id=made.id, new_metadata=metadata)
        self._has_note = True

    async def _copy(self, plan: _Plan) -> CopiedCollection:
        model = plan.model
        total = await self._source.count(model)
        named = (model.name, self._target.tenant, self._target.database)
        if plan.done:
            return CopiedCollection(*named, total, verified=True)
        occupied = plan.there is not None and await self._target.count(plan.there) > 0
        made = await self._made(plan, occupied=occupied)
        stage, done, written, replaced = f"copy {self._prefix}{model.name}", 0, 0, 0
        space = space_of(model)
        self._progress(stage, 0, total)
        async for page in self._source.pages(model):
            there = await self._target.records(made, list(page)) if occupied else {}
            other = [
                id for id in page if id in there and fields_that_differ(page[id], there[id], space=space)
            ]
            if other:
                # Not updated: Chroma would keep what metadata the old record has and the new one has not.
                await self._target.delete(made, other)
            lacking = {id: record for id, record in page.items() if id not in there or id in set(other)}
            if lacking:
                await self._target.add(made, lacking)
            done, written, replaced = done + len(page), written + len(lacking), replaced + len(other)
            self._progress(stage, done, max(done, total))
        if not self._verify:
            return CopiedCollection(*named, done, written, replaced)
        comparison, lines = await self._compared(plan, made)
        return CopiedCollection(
            *named,
            done,
            written,
            replaced,
            verified=True,
            missing=comparison.missing,
            different=comparison.different,
            extra=comparison.extra,
            differences=tuple(lines),
        )

    async def _made(self, plan: _Plan, *, occupied: bool) -> Model:
        """Return the collection at the destination: made, or what an earlier run made, or what is merged into."""
        model, there = plan.model, plan.there
        if there is None:
            return await make_like(model, self._target)
        if plan.merge or not unlike(model, there):
            return there
        if not occupied:
            # Killed between making it and finding that the server had left something out.
            await self._target.submit("delete_collection", name=model.name)
            return await make_like(model, self._target)
        if model.metadata and model.metadata != there.metadata:
            # Changed at the source since it was made.
            await self._target.submit("_modify", id=there.id, new_metadata=model.metadata)
        return there

    async def _compared(self, plan: _Plan, there: Model) -> tuple[_Comparison, list[str]]:
        model = plan.model
        total = await self._source.count(model)
        stage, done = f"verify {self._prefix}{model.name}", 0
        comparison = _Comparison(space_of(model))
        self._progress(stage, 0, total)
        async for page in self._source.pages(model):
            comparison.add(page, await self._target.records(there, list(page)))
            done += len(page)
            self._progress(stage, done, max(done, total))
        if plan.merge:
            return comparison, comparison.lines()
        other = await self._target.count(there)
        if other > comparison.found:
            comparison.add_extra(await self._only_there(model, there), other - comparison.found)
        now = (await self._target.models()).get(model.name)
        structure = ["it is not at the destination any more"] if now is None else unlike(model, now)
        return comparison, [*structure, *comparison.lines()]

    async def _only_there(self, model: Model, there: Model) -> list[str]:
        """Return a few ids that only the destination has."""
        ids: list[str] = []
        async for page in self._target.pages(there):
            known = await self._source.records(model, list(page))
            ids.extend(id for id in page if id not in known)
            if len(ids) >= _EXAMPLES:
                break
        return ids
