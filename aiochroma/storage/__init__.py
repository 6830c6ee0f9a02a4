"""What lies on disk, looked at and changed only while Chroma does not have it open.

Every function here is synchronous, is called on the database's own thread, and never imports chromadb.
"""

from aiochroma.storage._backup import (
    BackupReport,
    check_backup_target,
    copy_database,
    discard,
    finish_backup,
    note_backup,
    noted_backup,
    noted_sequences,
    read_manifest,
    restore,
    rotate_backups,
    size_of,
)
from aiochroma.storage._classify import FAULTS, Fault, FaultKind, Outcome, classify
from aiochroma.storage._filesystem import canonical_directory, check_directory, free_bytes, lock_warning
from aiochroma.storage._foreign import foreign_users, refuse_foreign_users
from aiochroma.storage._lock_probe import LockProbe
from aiochroma.storage._ownership import Owner, Ownership, acquire, read_owner
from aiochroma.storage._preflight import CollectionReport, PreflightReport, preflight
from aiochroma.storage._recovery import (
    CollectionRecovery,
    RecoveryReport,
    complete_retained_log,
    quarantine_database,
    quarantine_orphans,
    recover,
    refuse_damaged_sqlite,
)
from aiochroma.storage._retained_log import iter_log_vectors
from aiochroma.storage._sqlite import file_identity, prepare, trim_retained_log, vacuum, wait_until_closed

__all__ = [
    "FAULTS",
    "BackupReport",
    "CollectionRecovery",
    "CollectionReport",
    "Fault",
    "FaultKind",
    "LockProbe",
    "Outcome",
    "Owner",
    "Ownership",
    "PreflightReport",
    "RecoveryReport",
    "acquire",
    "canonical_directory",
    "check_backup_target",
    "check_directory",
    "classify",
    "complete_retained_log",
    "copy_database",
    "discard",
    "file_identity",
    "finish_backup",
    "foreign_users",
    "free_bytes",
    "iter_log_vectors",
    "lock_warning",
    "note_backup",
    "noted_backup",
    "noted_sequences",
    "preflight",
    "prepare",
    "quarantine_database",
    "quarantine_orphans",
    "read_manifest",
    "read_owner",
    "recover",
    "refuse_damaged_sqlite",
    "refuse_foreign_users",
    "restore",
    "rotate_backups",
    "size_of",
    "trim_retained_log",
    "vacuum",
    "wait_until_closed",
]
