"""Looking after a database that no program has open: check, repair, restore, migrate.

Importing this package imports neither chromadb nor numpy.
"""

from aiochroma.disk.backup import BackupReport
from aiochroma.disk.erasing import ErasureReceipt
from aiochroma.ops.doctor import doctor
from aiochroma.ops.migrate import CopiedCollection, MigrationReport, migrate
from aiochroma.ops.repair import erase
from aiochroma.ops.report import CollectionState, DoctorReport
from aiochroma.ops.restore import restore

__all__ = [
    "BackupReport",
    "CollectionState",
    "CopiedCollection",
    "DoctorReport",
    "ErasureReceipt",
    "MigrationReport",
    "doctor",
    "erase",
    "migrate",
    "restore",
]
