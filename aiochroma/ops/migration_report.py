"""What a migration has copied, and what its verification found."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from aiochroma._types import JsonObject

__all__ = ["CopiedCollection", "MigrationReport"]

_COMPLETE, _DIFFERENT = range(2)


@dataclass(frozen=True)
class CopiedCollection:
    """One collection.

    Attributes:
        name: Its name.
        tenant: Chroma's tenant at the destination.
        database: Chroma's database at the destination.
        records: Records at the source.
        written: Records that this run wrote, ``replaced`` among them.
        replaced: Records that were there and different.
        verified: Whether both sides were compared after copying.
        missing: Records that are not at the destination.
        different: Records whose vector, document, metadata or URI differs.
        extra: Records that are at the destination only; with ``merge`` they are not counted.
        differences: What differs, one sentence each, with a few ids as examples.
    """

    name: str
    tenant: str
    database: str
    records: int
    written: int = 0
    replaced: int = 0
    verified: bool = False
    missing: int = 0
    different: int = 0
    extra: int = 0
    differences: tuple[str, ...] = ()


@dataclass(frozen=True)
class MigrationReport:
    """The outcome of a migration.

    Attributes:
        source: Where from; a server's address without its token.
        destination: Where to.
        collections: One entry for each.
        notes: What was not copied, and why.
        seconds: How long all took.
    """

    source: str
    destination: str
    collections: tuple[CopiedCollection, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def records(self) -> int:
        """Records at the source."""
        return sum(entry.records for entry in self.collections)

    @property
    def written(self) -> int:
        """Records that this run wrote; what an interrupted run had written before is not among them."""
        return sum(entry.written for entry in self.collections)

    @property
    def differences(self) -> tuple[str, ...]:
        """What verification found, one sentence each."""
        return tuple(f"{entry.name}: {line}" for entry in self.collections for line in entry.differences)

    @property
    def is_verified(self) -> bool:
        """Whether everything was compared and nothing differs."""
        return all(entry.verified and not entry.differences for entry in self.collections)

    @property
    def exit_code(self) -> int:
        """0: nothing is known to differ; 1: something does."""
        return _DIFFERENT if self.differences else _COMPLETE

    def as_dict(self) -> JsonObject:
        """Return plain data, for JSON."""
        return {
            **asdict(self),
            "records": self.records,
            "written": self.written,
            "is_verified": self.is_verified,
        }
