"""A bundle's configs: which code they name, and their text with that code below ``scripts``."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import BundleError
from pipeline.packing.sources import PACKAGE, ROOTS, imports_of, is_ours

__all__ = ["ROOT_NAME", "config_files", "named_code", "parse_config", "rewrite_config"]

ROOT_NAME = "BUNDLE_ROOT"  # in scripts/__init__.py: the folder that the bundle was unpacked into

# A YAML or JSON key whose value names what to make, and an import statement, each of our packages.
OURS = rf"(?=(?:{'|'.join(ROOTS)})\.)"
TARGET = re.compile(rf"""(\b_target_["']?\s*:\s*["']?){OURS}""")
IMPORT = re.compile(rf"(\$\s*(?:import|from)\s+){OURS}")
# Our code named in another way, such as `$pipeline.weights.load()`; not a key such as `@train#transforms`.
ELSEWHERE = re.compile(rf"""(?<![\w.@#:"'])(?:{"|".join(ROOTS)})\.\w""")
# The working directory as the bundle's folder: only true when the commands are run from there.
HERE = re.compile(r"""^bundle_root:\s*(?:\.|'\.'|"\.")\s*$""", re.MULTILINE)


def parse_config(text: str, name: str) -> Any:
    """Return the content of a YAML or JSON config, nothing resolved.

    Raises:
        BundleError: If it is neither.
    """
    import yaml

    try:
        return json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise BundleError(f"{name} must be a config: {' '.join(str(error).split())}") from error


def named_code(content: Any, name: str) -> list[str]:
    """Return the dotted names of all that a config makes or imports, whoever wrote it.

    Args:
        content: As ``parse_config`` returns it.
        name: Of its file, for messages.

    Raises:
        BundleError: If an expression names our code in a way that cannot be rewritten.
    """
    found: list[str] = []
    for key, value in _strings(content):
        statement = _import_statement(value)
        if statement is not None:
            found += [name for imported in imports_of(statement, name) for name in imported.names]
        elif key == "_target_":
            found.append(value)
        elif value.startswith("$") and ELSEWHERE.search(value):
            raise BundleError(f"{name}: {value!r} must import the code that it names, to be packed")
    return found


def rewrite_config(text: str, name: str) -> str:
    """Return a config's text, comments and all, with our code below ``scripts``.

    The bundle's folder becomes the one that holds ``scripts``, from whatever directory MONAI is called.

    Args:
        text: YAML or JSON.
        name: Of its file, for messages.

    Raises:
        BundleError: If the text names our code in a way that cannot be rewritten.
    """
    result = IMPORT.sub(rf"\g<1>{PACKAGE}.", TARGET.sub(rf"\g<1>{PACKAGE}.", text))
    left = [found for found in named_code(parse_config(result, name), name) if is_ours(found)]
    if left:
        raise BundleError(f"{name}: {left[0]} must stand alone behind '_target_:', 'import' or 'from' to be packed")
    return HERE.sub(f"bundle_root: '$__import__(\"{PACKAGE}\").{ROOT_NAME}'", result)


def config_files(folder: Path) -> list[Path]:
    """Return the configs of a bundle that may name code: all but its metadata."""
    files = sorted(folder.iterdir())
    return [file for file in files if file.suffix in (".yaml", ".yml", ".json") and file.name != "metadata.json"]


def _strings(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every string of a config with the key it stands under."""
    if isinstance(content, str):
        yield key, content
    elif isinstance(content, dict):
        for inner, value in content.items():
            yield from _strings(value, str(inner))
    elif isinstance(content, list):
        for value in content:
            yield from _strings(value, key)


def _import_statement(value: str) -> str | None:
    """Return the statement of a string such as ``$import torch``; None where it is none."""
    if not value.startswith("$") or "import" not in value:
        return None
    try:
        statements = ast.parse(value[1:].strip()).body
    except SyntaxError:  # an expression with references, which are no Python
        return None
    is_import = bool(statements) and isinstance(statements[0], ast.Import | ast.ImportFrom)
    return value[1:].strip() if is_import else None
