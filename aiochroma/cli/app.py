"""The command line: a memory for a shell, looking after databases, and the demonstration.

Importing this module imports neither chromadb nor numpy, so that ``aiochroma --help`` is light.
"""

from __future__ import annotations

import io
import logging
import os
import platform
import signal
import sys
from typing import Annotated, NoReturn

from aiochroma._distribution import DISTRIBUTION, missing_extra, version
from aiochroma._errors import AiochromaError, InvalidInputError, MissingExtraError

try:
    import typer
    from rich.console import Console
except ImportError as _error:
    raise missing_extra("The command line", "cli", _error.name) from _error

from aiochroma.cli.common import BAD_INPUT, EXIT_CODES, OK, UNAVAILABLE, say
from aiochroma.cli.maintenance import maintenance_app
from aiochroma.cli.memories import memories_app
from aiochroma.cli.serving import serving_app
from aiochroma.cli.transfer import transfer_app

__all__ = ["app", "run"]

_INTERRUPTED = 130
_ENDING_SIGNALS = ("SIGTERM", "SIGHUP")

app: typer.Typer = typer.Typer(
    help="Remember texts and recall them by meaning, from a shell.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    # Errors of ours are one line; of anything else Python's own traceback says most.
    pretty_exceptions_enable=False,
)


def run() -> NoReturn:
    """Run the command line and end the process.

    An error of aiochroma's is one line on standard error; anything else keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal or a pipe whose encoding lacks a character shows its number; nothing that was remembered ends a command.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for name in _ENDING_SIGNALS:
        # As Ctrl-C: what is under way is left in good order, and private files that are temporary go.
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)
    # What is worth saying is said by the commands; events would be bare words between the lines.
    logging.getLogger("aiochroma").addHandler(logging.NullHandler())
    try:
        app(prog_name="aiochroma")
    except AiochromaError as error:
        say(str(error))
        sys.exit(BAD_INPUT if isinstance(error, (InvalidInputError, MissingExtraError)) else UNAVAILABLE)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        # It is the output: a full disk, a terminal that is gone. Python would write what is left once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        say(f"the output cannot be written: {error.strerror or error}")
        sys.exit(UNAVAILABLE)
    sys.exit(OK)


def _end(number: int, frame: object) -> NoReturn:  # noqa: ARG001 - as signals are handled
    sys.exit(128 + number)


def _print_version(requested: bool) -> None:
    if not requested:
        return
    from importlib.metadata import version as version_of

    typer.echo(
        f"{DISTRIBUTION} {version()}, chromadb {version_of('chromadb')}, {platform.python_implementation()} "
        f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    )
    raise typer.Exit


@app.callback()
def main(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print versions and end."),
    ] = False,
) -> None:
    """Remember texts and recall them by meaning, from a shell."""


@app.command(epilog=EXIT_CODES)
def demo(
    table: Annotated[
        bool, typer.Option("--table", help="Print the long comparison under load instead of the three acts.")
    ] = False,
    seconds: Annotated[
        float, typer.Option(min=0.1, max=600, help="With --table: how long each of the three loads runs.")
    ] = 3.0,
    tasks: Annotated[
        int, typer.Option(min=1, max=1000, help="With --table: how many tasks ask at the same time.")
    ] = 32,
) -> None:
    """Show in three acts of a few seconds what this is for; everything shown is measured in that run."""
    console = Console(highlight=False)
    if table:
        from aiochroma.demo.table import run_table

        run_table(console, seconds=seconds, tasks=tasks)
    else:
        from aiochroma.demo.acts import run_demo

        run_demo(console)


for _commands in (memories_app, transfer_app, maintenance_app, serving_app):
    app.add_typer(_commands)
