"""What tests ask of host processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
from programs import is_alive, until

from aiochroma.disk.ownership import read_owner
from aiochroma.host.reaching import ask
from aiochroma.host.sockets import connect
from aiochroma.host.wire import FrameKind


class Hosts:
    """What the tests ask of the hosts of their directories."""

    def __init__(self, folder):
        self.folder = folder
        self.seen = set()
        self.directories = set()

    def pid(self, directory):
        """Return the process that serves a directory, or None."""
        self.directories.add(os.path.realpath(directory))
        owner = read_owner(os.path.realpath(directory))
        if owner is None or owner.role != "host" or not is_alive(owner.pid):
            return None
        self.seen.add(owner.pid)
        return owner.pid

    def status(self, directory):
        """Return what a host says of itself, or None where there is none."""
        connected = connect(os.path.realpath(directory))
        if connected is None:
            return None
        with connected:
            return ask(connected, FrameKind.STATUS)[2]

    def kill(self, directory, number=signal.SIGKILL):
        """Send a signal to the host of a directory; return its process."""
        pid = until(lambda: self.pid(directory), "a host")
        os.kill(pid, number)
        return pid

    def ended(self, pid):
        """Wait until a host is gone."""
        until(lambda: not is_alive(pid), f"the end of {pid}")

    def log(self, directory):
        """Return what a host has written down."""
        path = Path(directory) / "aiochroma-host.log"
        return path.read_text() if path.exists() else ""


def same(mine, theirs):
    """Whether two values are equal in value and type, through and through."""
    if type(mine) is not type(theirs):
        return False
    if isinstance(mine, np.ndarray):
        alike = mine.dtype == theirs.dtype and mine.shape == theirs.shape and np.array_equal(mine, theirs)
        return alike and mine.flags.writeable == theirs.flags.writeable
    if isinstance(mine, dict):
        return mine.keys() == theirs.keys() and all(same(mine[key], theirs[key]) for key in mine)
    if isinstance(mine, (list, tuple)):
        return len(mine) == len(theirs) and all(map(same, mine, theirs))
    if isinstance(mine, float):
        return repr(mine) == repr(theirs)
    return mine == theirs
