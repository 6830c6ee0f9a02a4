"""The command line: a memory for a shell, looking after databases, and the demonstration.

Importing this module imports neither chromadb nor numpy, so that ``aiochroma --help`` is light.
"""

from __future__ import annotations

import io
import logging
import os
import platform
import re
import signal
import sys
from typing import TYPE_CHECKING, Annotated, NoReturn

from aiochroma._distribution import DISTRIBUTION, missing_extra, version
from aiochroma._errors import AiochromaError, InvalidInputError, MissingExtraError

try:
    import typer
    from rich.console import Console
    from typer.core import TyperGroup
except ImportError as _error:
    raise missing_extra("The command line", "cli", _error.name) from _error

from aiochroma.cli.common import BAD_INPUT, EXIT_CODES, OK, UNAVAILABLE, say
from aiochroma.cli.maintenance import maintenance_app
from aiochroma.cli.memories import memories_app
from aiochroma.cli.serving import serving_app
from aiochroma.cli.transfer import transfer_app

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typer._click.core import Context, Parameter
    from typing_extensions import Buffer

__all__ = ["app", "run"]

_INTERRUPTED = 130
_READER_LEFT = 141
"""What a shell says of a program that ended by SIGPIPE."""
_ENDING_SIGNALS = ("SIGTERM", "SIGHUP")


class _Output(io.FileIO):
    """Standard output, whose reader may leave before the end, as `head` does: then this process ends quietly, like others.

    Not by a BrokenPipeError: Rich and Typer end with 1 at one, which here means that something was not found.
    """

    def write(self, data: Buffer, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            _close_output()
            sys.exit(_READER_LEFT)


class _Commands(TyperGroup):
    """The commands. What the library says of its arguments is said of the options that they were given with."""

    def invoke(self, ctx: Context) -> object:
        """Run a command; an error of aiochroma's is one line on standard error."""
        try:
            return super().invoke(ctx)
        except AiochromaError as error:
            command = self.commands.get(ctx.invoked_subcommand or "")
            say(_in_options(str(error), [] if command is None else command.params))
            sys.exit(BAD_INPUT if isinstance(error, (InvalidInputError, MissingExtraError)) else UNAVAILABLE)


def _in_options(message: str, parameters: Sequence[Parameter]) -> str:
    """Put the names of options and arguments where a message has those of Python's, which are the same but for their spelling."""
    names = {}
    for parameter in parameters:
        if parameter.param_type_name == "argument":
            names.update({word.lower(): word for word in re.findall(r"\w+", parameter.metavar or "")})
        else:
            names[parameter.name] = max(parameter.opts, key=len)
    # Of several, such as `texts`, an option gives one.
    names.update({f"{name}s": names[name] for name in names if f"{name}s" not in names})
    names.update({name[:-1]: names[name] for name in names if name.endswith("s") and name[:-1] not in names})
    said = re.sub(r"`(\w+)`", lambda match: f"`{names.get(match[1], match[1])}`", message)
    # What is left out is None to Python.
    said = said.replace(", or None", "")
    # The name of a file stays as it is.
    return said[:1].upper() + said[1:] if said.split(" ", 1)[0].isalpha() else said


app: typer.Typer = typer.Typer(
    cls=_Commands,
    help="Remember texts and recall them by meaning, from a shell.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    # An error of this package is printed as one line; for any other Python's own traceback is most useful.
    pretty_exceptions_enable=False,
)


def run() -> NoReturn:
    """Run the command line and end the process.

    An error of aiochroma's is one line on standard error; anything else keeps its traceback.
    """
    _watch_output()
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
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        # It is the output: a full disk, a terminal that is gone.
        _close_output()
        say(f"the output cannot be written: {error.strerror or error}")
        sys.exit(UNAVAILABLE)
    sys.exit(OK)


def _watch_output() -> None:
    """Have a reader of standard output that leaves end this process."""
    try:
        number = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        return  # There is none, or it is not a file.
    if os.name == "posix" and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.flush()
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(_Output(number, "wb", closefd=False)),
            sys.stdout.encoding,
            line_buffering=sys.stdout.line_buffering,
            write_through=sys.stdout.write_through,
        )


def _close_output() -> None:
    """Let nothing be written any more: Python would write what is left once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


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
