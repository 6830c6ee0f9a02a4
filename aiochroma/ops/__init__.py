"""Looking after a database that nobody has open: check, repair, restore, migrate.

Importing this package imports neither chromadb nor numpy.
"""

from aiochroma.ops._doctor import doctor
from aiochroma.ops._migrate import migrate
from aiochroma.ops._migration_report import CopiedCollection, MigrationReport
from aiochroma.ops._report import CollectionState, DoctorReport
from aiochroma.storage import BackupReport, restore

__all__ = [
    "BackupReport",
    "CollectionState",
    "CopiedCollection",
    "DoctorReport",
    "MigrationReport",
    "doctor",
    "migrate",
    "restore",
]
