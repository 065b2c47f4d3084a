"""The exception tree: what went wrong with what the user gave us.

AR2UNetError                 exit code 2
├── ScanError                a scan cannot be read, or is not one we can segment
├── DatasetError             a data set's folder is not as its publisher lays it out
├── BundleError              a bundle's folder or weights are missing or do not fit
└── SomeInputsFailedError    exit code 1: some inputs failed, the others are done

The command line prints the message of any of them as one line and exits with
``exit_code``; whatever else escapes is a bug.
"""

from __future__ import annotations

__all__ = ["AR2UNetError", "BundleError", "DatasetError", "ScanError", "SomeInputsFailedError"]


class AR2UNetError(Exception):
    """Base of every error whose message is meant for the user.

    The message is one line and names the thing, what was expected and what came.
    """

    exit_code: int = 2


class ScanError(AR2UNetError):
    """A scan is missing, unreadable, or not a volume this software can segment."""


class DatasetError(AR2UNetError):
    """A data set's folder, or one patient in it, is not as its publisher lays it out."""


class BundleError(AR2UNetError):
    """A bundle's folder, configuration or weights are missing or do not fit together."""


class SomeInputsFailedError(AR2UNetError):
    """Some inputs failed, each already named with its reason; the others are done."""

    exit_code: int = 1


def first_line(error: BaseException) -> str:
    """Return the first line of what a library says went wrong, or the kind of error where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
