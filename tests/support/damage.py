"""What can become of the files of a database: each damage is done to the files of one index, or to one file of SQLite."""

from __future__ import annotations

import os
import shutil


def cut(file, share):
    """Leave only a share of a file."""
    os.truncate(file, int(file.stat().st_size * share))


def flip(file, offset, length=64):
    """Change some bytes of a file."""
    with file.open("r+b") as handle:
        handle.seek(offset)
        content = handle.read(length)
        handle.seek(offset)
        handle.write(bytes(byte ^ 0xA5 for byte in content))


INDEX_DAMAGES = {
    "directory deleted": shutil.rmtree,
    "id map deleted": lambda index: (index / "index_metadata.pickle").unlink(),
    "id map empty": lambda index: cut(index / "index_metadata.pickle", 0),
    "id map cut": lambda index: cut(index / "index_metadata.pickle", 0.5),
    "header cut": lambda index: cut(index / "header.bin", 0.5),
    "header deleted": lambda index: (index / "header.bin").unlink(),
    "header flipped": lambda index: flip(index / "header.bin", 0),
    "vectors cut": lambda index: cut(index / "data_level0.bin", 0.5),
    "vectors empty": lambda index: cut(index / "data_level0.bin", 0),
    # Beyond the element that a search begins at.
    "vectors flipped": lambda index: flip(index / "data_level0.bin", 20 * 268),
    "links cut": lambda index: cut(index / "link_lists.bin", 0.5),
    "links flipped": lambda index: flip(index / "link_lists.bin", 0),
    "links deleted": lambda index: (index / "link_lists.bin").unlink(),
    "norms cut": lambda index: cut(index / "length.bin", 0.5),
}
SQLITE_DAMAGES = {
    "SQLite header flipped": lambda file: flip(file, 0, 16),
    "SQLite schema flipped": lambda file: flip(file, 100),
    "SQLite cut": lambda file: cut(file, 0.5),
    "SQLite page flipped": lambda file: flip(file, file.stat().st_size // 2 // 4096 * 4096, 4096),
    "SQLite empty": lambda file: cut(file, 0),
    "SQLite deleted": lambda file: file.unlink(),
    "no database": lambda file: file.write_bytes(b"hello" * 2000),
}
