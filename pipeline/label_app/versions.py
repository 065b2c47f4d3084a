"""Versions of a bundle's weights: the shipped ones, which nothing ever changes, and one file for each training."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import BundleError
from pipeline.formats.atomic import atomic_write

__all__ = ["SHIPPED", "Choice", "add_version", "choose", "list_versions", "offered"]

SHIPPED = "model.pt"
FINE_TUNED = re.compile(r"finetuned_(\d{4,})\.pt")


@dataclass(frozen=True)
class Choice:
    """Which weights a server was started with.

    Attributes:
        name: Of the file, until a training makes a newer one.
        known: The highest number there was at the start; a version above it is newer than the choice.
    """

    name: str
    known: int


def list_versions(models: Path) -> list[str]:
    """Return the names of all weights of a bundle, the newest first and the shipped ones last."""
    numbers = sorted((number for path in models.iterdir() if (number := _number(path.name))), reverse=True)
    return [_name(number) for number in numbers] + [SHIPPED]


def choose(models: Path, wanted: str) -> Choice:
    """Return the weights to start with.

    Args:
        models: The bundle's folder ``models``.
        wanted: "latest", "shipped", a version's number, or the name of its file.

    Raises:
        BundleError: If there are no such weights.
    """
    versions = list_versions(models)
    known = _number(versions[0])
    name = {"latest": versions[0], "shipped": SHIPPED}.get(wanted, wanted)
    if name.isdecimal():
        name = _name(int(name))
    if name not in versions:
        have = ", ".join(["latest", "shipped", *(version for version in versions if version != SHIPPED)])
        raise BundleError(f"{models.parent.name} must have the weights asked for, one of {have}; got {wanted}")
    return Choice(name, known)


def offered(models: Path, choice: Choice) -> list[str]:
    """Return the names of all weights, first those to use unless a request names others."""
    versions = list_versions(models)
    first = versions[0] if _number(versions[0]) > choice.known else choice.name
    return [first, *(version for version in versions if version != first)]


def add_version(models: Path, weights: Path) -> str:
    """Copy a training's weights beside all others, complete or not at all; return the name of the new version."""
    name = _name(_number(list_versions(models)[0]) + 1)
    with weights.open("rb") as source, atomic_write(models / name) as target:
        shutil.copyfileobj(source, target)
    return name


def _number(name: str) -> int:
    """Return a version's number; 0 for what is none, such as the shipped weights."""
    match = FINE_TUNED.fullmatch(name)
    return int(match[1]) if match else 0


def _name(number: int) -> str:
    return f"finetuned_{number:04d}.pt" if number else SHIPPED
