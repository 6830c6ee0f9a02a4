"""An asyncio-native memory layer over embedded ChromaDB: one database, one thread, any number of coroutines.

Importing this package imports its errors and little else; other names are looked up when they are first used, and chromadb and
numpy are imported when a database is opened.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from aiochroma._errors import (
    AccessDeniedError,
    AiochromaError,
    BackupError,
    BlockingCallError,
    ClosedError,
    DatabaseCorruptError,
    DatabaseFormatError,
    DatabaseInUseError,
    DatabaseLockedError,
    DatabaseMovedError,
    DatabasePathError,
    DeadlineExceededError,
    EmbedderError,
    EmbedderMismatchError,
    EmbeddingFailedError,
    EventLoopRequiredError,
    ExtractFailedError,
    ForkedProcessError,
    InvalidInputError,
    MigrationError,
    MissingExtraError,
    NamespaceMovingError,
    OutcomeUnknownError,
    PartialWriteError,
    QueueFullError,
    RerankFailedError,
    SettingsConflictError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    __version__: str
    from aiochroma._waiting import deadline
    from aiochroma.client.client import AsyncClient
    from aiochroma.client.collection import Collection
    from aiochroma.client.maintenance import Health
    from aiochroma.client.opening import AsyncEphemeralClient, AsyncHttpClient, AsyncPersistentClient, connect
    from aiochroma.core.stats import Latency, Stats
    from aiochroma.disk.backup import BackupReport
    from aiochroma.disk.erasing import ErasureReceipt
    from aiochroma.disk.findings import RecoveryReport
    from aiochroma.embedding.minilm import MiniLmEmbedder
    from aiochroma.embedding.protocol import Embedder, TokenEmbedder, WindowedEmbedder
    from aiochroma.embedding.words import HashedEmbedder, WordLlamaEmbedder
    from aiochroma.memory.memory import Memory
    from aiochroma.memory.recalling import NamespaceSearch
    from aiochroma.memory.reembedding import ReembedReport
    from aiochroma.memory.results import Count, Hit, Id, Items, MemoryChange, Page, Recall, UnavailableHit
    from aiochroma.memory.stored import Listing
    from aiochroma.ops import DoctorReport, MigrationReport, doctor, erase, migrate, restore

__all__ = [
    "AccessDeniedError",
    "AiochromaError",
    "AsyncClient",
    "AsyncEphemeralClient",
    "AsyncHttpClient",
    "AsyncPersistentClient",
    "BackupError",
    "BackupReport",
    "BlockingCallError",
    "ClosedError",
    "Collection",
    "Count",
    "DatabaseCorruptError",
    "DatabaseFormatError",
    "DatabaseInUseError",
    "DatabaseLockedError",
    "DatabaseMovedError",
    "DatabasePathError",
    "DeadlineExceededError",
    "DoctorReport",
    "Embedder",
    "EmbedderError",
    "EmbedderMismatchError",
    "EmbeddingFailedError",
    "ErasureReceipt",
    "EventLoopRequiredError",
    "ExtractFailedError",
    "ForkedProcessError",
    "HashedEmbedder",
    "Health",
    "Hit",
    "Id",
    "InvalidInputError",
    "Items",
    "Latency",
    "Listing",
    "Memory",
    "MemoryChange",
    "MigrationError",
    "MigrationReport",
    "MiniLmEmbedder",
    "MissingExtraError",
    "NamespaceMovingError",
    "NamespaceSearch",
    "OutcomeUnknownError",
    "Page",
    "PartialWriteError",
    "QueueFullError",
    "Recall",
    "RecoveryReport",
    "ReembedReport",
    "RerankFailedError",
    "SettingsConflictError",
    "Stats",
    "StoreUnavailableError",
    "TokenEmbedder",
    "UnavailableHit",
    "WindowedEmbedder",
    "WordLlamaEmbedder",
    "connect",
    "deadline",
    "doctor",
    "erase",
    "migrate",
    "restore",
]

_LATE = {
    "AsyncEphemeralClient": "aiochroma.client.opening",
    "AsyncHttpClient": "aiochroma.client.opening",
    "AsyncPersistentClient": "aiochroma.client.opening",
    "connect": "aiochroma.client.opening",
    "deadline": "aiochroma._waiting",
    "Latency": "aiochroma.core.stats",
    "Stats": "aiochroma.core.stats",
    "MemoryChange": "aiochroma.memory.results",
    "Listing": "aiochroma.memory.stored",
    "ReembedReport": "aiochroma.memory.reembedding",
    "Memory": "aiochroma.memory.memory",
    "Hit": "aiochroma.memory.results",
    "NamespaceSearch": "aiochroma.memory.recalling",
    "Recall": "aiochroma.memory.results",
    "Count": "aiochroma.memory.results",
    "Id": "aiochroma.memory.results",
    "Items": "aiochroma.memory.results",
    "Page": "aiochroma.memory.results",
    "UnavailableHit": "aiochroma.memory.results",
    "BackupReport": "aiochroma.disk.backup",
    "DoctorReport": "aiochroma.ops",
    "MigrationReport": "aiochroma.ops",
    "ErasureReceipt": "aiochroma.disk.erasing",
    "doctor": "aiochroma.ops",
    "erase": "aiochroma.ops",
    "migrate": "aiochroma.ops",
    "restore": "aiochroma.ops",
    "AsyncClient": "aiochroma.client.client",
    "Collection": "aiochroma.client.collection",
    "Embedder": "aiochroma.embedding.protocol",
    "HashedEmbedder": "aiochroma.embedding.words",
    "Health": "aiochroma.client.maintenance",
    "RecoveryReport": "aiochroma.disk.findings",
    "WordLlamaEmbedder": "aiochroma.embedding.words",
    "MiniLmEmbedder": "aiochroma.embedding.minilm",
    "TokenEmbedder": "aiochroma.embedding.protocol",
    "WindowedEmbedder": "aiochroma.embedding.protocol",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from aiochroma._distribution import version

        return version()
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Kept, so that it is looked up once.
    value = globals()[name] = getattr(import_module(_LATE[name]), name)
    return value
