"""What is installed under which name: the distribution, its version, and the line that installs an extra.

The package index knows another project called ``aiochroma`` (an interface for lighting devices). Ours is installed as
``aiochroma-memory`` and imported as ``aiochroma``; every hint in messages and documents takes the name from here.
"""

from __future__ import annotations

from functools import cache

from aiochroma._errors import MissingExtraError

__all__ = ["DISTRIBUTION", "install_line", "missing_extra", "version"]

DISTRIBUTION = "aiochroma-memory"
_OTHER_PROJECT = "aiochroma"


@cache
def version() -> str:
    """Return the version of the installed distribution.

    Raises:
        ImportError: The installed distribution is the other project, not this one.
    """
    # Late: importing this costs more than the rest of the package.
    from importlib import metadata

    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        pass
    try:
        other = metadata.version(_OTHER_PROJECT)
    except metadata.PackageNotFoundError:
        return "unknown"  # Run from a source folder without having been installed.
    raise ImportError(
        f"The distribution {_OTHER_PROJECT!r} {other} is installed, which is another project (an interface for lighting "
        f"devices). This package is installed as {DISTRIBUTION!r}: pip uninstall {_OTHER_PROJECT}, then {install_line()}"
    )


def install_line(extra: str = "") -> str:
    """Return the command that installs this package, with one of its extras if one is named."""
    return f"pip install '{DISTRIBUTION}[{extra}]'" if extra else f"pip install {DISTRIBUTION}"


def missing_extra(feature: str, extra: str, package: str | None) -> MissingExtraError:
    """Make the error for a feature whose optional package is not installed.

    Args:
        feature: What needs the package; the beginning of the message.
        extra: The extra that brings the package.
        package: The name of the module that could not be imported, if it is known.
    """
    return MissingExtraError(
        f"{feature} needs the package {package or 'of an extra'}: {install_line(extra)}", name=package
    )
