"""A page to look at a memory: ``aiochroma ui``.

Made with Streamlit, which the package has an extra for already: the page is a script without a line of HTML or JavaScript, and
works offline. It listens on this machine only, and whoever opens it needs the token of the start address. A host serves the
database, so the page works beside the program that uses the memory.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from aiochroma._distribution import missing_extra
from aiochroma._errors import InvalidInputError, StoreUnavailableError
from aiochroma.disk.copying import ChildError, interpreter, package_environment

__all__ = ["PATH", "TOKEN", "WRITE", "serve"]

PATH, TOKEN, WRITE = "AIOCHROMA_UI_PATH", "AIOCHROMA_UI_TOKEN", "AIOCHROMA_UI_WRITE"
"""What the page is told in its environment; other users of the machine see arguments, but not these."""


def serve(path: str | os.PathLike[str], *, port: int | None = None, write: bool = False) -> int:
    """Print the page's address, and serve it until it is interrupted.

    On POSIX systems Streamlit takes the place of this process, so this never returns.

    Args:
        path: The memory's directory.
        port: The port; None for one that is free.
        write: Offer to forget memories and to make backups.

    Returns:
        The exit code.

    Raises:
        MissingExtraError: Streamlit is not installed.
        InvalidInputError: The port is in use.
        StoreUnavailableError: This program has no Python interpreter of its own.
    """
    if find_spec("streamlit") is None:
        raise missing_extra("The page", "ui", "streamlit")
    token = secrets.token_urlsafe(24)
    chosen = _port(port)
    options = {
        "server.address": "127.0.0.1",
        "server.port": chosen,
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "logger.level": "error",
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    page = Path(__file__).with_name("page.py")
    told = {PATH: os.path.realpath(path), TOKEN: token, WRITE: "1" if write else ""}
    try:
        command = [*interpreter(), "-m", "streamlit", "run", str(page), *flags]
    except ChildError as error:
        raise StoreUnavailableError(f"The page cannot be served: {error}.") from error
    print(f"http://127.0.0.1:{chosen}/?token={token}", flush=True)
    environment = {**package_environment(), **told}
    if os.name == "posix":
        # In the place of this process, so that whoever ends it ends the page, by whatever signal.
        os.dup2(2, 1)
        os.execve(command[0], command, environment)  # noqa: S606 - our own module
    with subprocess.Popen(command, env=environment, stdout=sys.stderr) as process:  # noqa: S603 - our own module
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()
            return process.wait()


def _port(wished: int | None) -> int:
    """Return a port that is free, the one that is wished for if one is."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", wished or 0))
        except OSError as error:
            raise InvalidInputError(
                f"The port {wished} cannot be used: {error.strerror}. Leave it out for one that is free."
            ) from error
        port: int = listening.getsockname()[1]
        return port
