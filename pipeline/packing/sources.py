"""The modules that a bundle needs, found by walking their imports, and rewritten to lie below ``scripts``."""

from __future__ import annotations

import ast
import symtable
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import BundleError

__all__ = ["PACKAGE", "ROOTS", "Imported", "collect_modules", "find_module", "imports_of", "is_ours", "rewrite_imports"]

ROOTS = ("networks", "transforms", "pipeline")  # the packages that a bundle's configs name
PACKAGE = "scripts"  # MONAI's folder for a bundle's code, and the only one that MONAI Label unloads between bundles

# When an import is run: with its module, when its function is called, or never (below `if TYPE_CHECKING`).
Time = Literal["module", "function", "typing"]


@dataclass(frozen=True)
class Imported:
    """A statement that imports.

    Attributes:
        node: The statement.
        time: When it is run.
    """

    node: ast.Import | ast.ImportFrom
    time: Time

    @property
    def names(self) -> list[str]:
        """Dotted names, each a module, or a name in one."""
        if isinstance(self.node, ast.Import):
            return [alias.name for alias in self.node.names]
        return [f"{self.node.module}.{alias.name}" for alias in self.node.names]


def is_ours(name: str) -> bool:
    """Return whether a dotted name begins with one of this repository's packages."""
    return name.partition(".")[0] in ROOTS


def find_module(name: str, repository: Path) -> str | None:
    """Return the module that a dotted name is, or lies in; None where there is none."""
    while name:
        if _file_of(name, repository) is not None:
            return name
        name = name.rpartition(".")[0]
    return None


def collect_modules(names: Iterable[str], repository: Path) -> dict[str, Path]:
    """Return the modules that names lie in, with every module that those import, by their path below the repository.

    Args:
        names: Dotted names of modules, classes or functions of this repository.
        repository: The folder that holds its packages.

    Returns:
        Files by their relative path with forward slashes, sorted; the ``__init__.py`` of every package is among them.

    Raises:
        BundleError: If a name lies in no module, or a module imports what cannot be moved.
    """
    found: dict[str, Path] = {}
    waiting = [_existing(name, repository) for name in names]
    while waiting:
        module = waiting.pop()
        file = _file_of(module, repository)
        if file is None or file.relative_to(repository).as_posix() in found:
            continue
        found[file.relative_to(repository).as_posix()] = file
        waiting += [parent for parent in [module.rpartition(".")[0]] if parent]
        for imported in imports_of(file.read_text(encoding="utf-8"), str(file)):
            if imported.time != "typing":
                waiting += [_existing(name, repository) for name in imported.names if is_ours(name)]
    return dict(sorted(found.items()))


def imports_of(source: str, name: str) -> list[Imported]:
    """Return the imports of a module, in the order of its text.

    Raises:
        BundleError: If the text is no Python, or an import is relative or binds one of our packages itself.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise BundleError(f"{name} must be Python: line {error.lineno}: {error.msg}") from error
    visitor = _Visitor()
    visitor.visit(tree)
    for imported in visitor.found:
        node = imported.node
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            raise BundleError(f"{name}, line {node.lineno}: a relative import must be written as an absolute one")
        if isinstance(node, ast.Import) and any(is_ours(alias.name) and not alias.asname for alias in node.names):
            raise BundleError(
                f"{name}, line {node.lineno}: 'import {imported.names[0]}' must have an 'as' to be packed"
            )
    return visitor.found


def rewrite_imports(source: str, name: str, repository: Path) -> str:
    """Return a module's text with every import of our packages one from below ``scripts``.

    What a function imports is imported with the module instead: when the function is called, ``scripts``
    may be another bundle's.

    Args:
        source: The module's text.
        name: Of its file, for messages.
        repository: The folder that holds our packages.

    Raises:
        BundleError: If an import cannot be moved.
    """
    lines = source.splitlines(keepends=True)
    hoisted: set[str] = set()
    for imported in reversed(imports_of(source, name)):  # from the end, so that positions stay true
        node = imported.node
        if not any(is_ours(found) for found in imported.names):
            continue
        if imported.time == "function":
            _replace(lines, node, _assignments(node, repository, hoisted))
        elif isinstance(node, ast.ImportFrom):
            _insert(lines, node.lineno, node.col_offset + len("from "))
        else:
            for alias in reversed(node.names):
                if is_ours(alias.name):
                    _insert(lines, alias.lineno, alias.col_offset)
    text = "".join(lines)
    if hoisted:
        text += "\n# Imported with this module: when a function runs, `scripts` may already be another bundle's.\n"
        text += "".join(f"import {PACKAGE}.{module} as {_alias(module)}\n" for module in sorted(hoisted))
    ast.parse(text)
    return text


class _Visitor(ast.NodeVisitor):
    """Collects imports; knows when each is run."""

    def __init__(self) -> None:
        self.found: list[Imported] = []
        self.time: Time = "module"

    def visit_Import(self, node: ast.Import) -> None:
        self.found.append(Imported(node, self.time))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self.found.append(Imported(node, self.time))

    def visit_If(self, node: ast.If) -> None:
        is_typing = ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        self._visit_at("typing" if is_typing else self.time, node.body)
        self._visit_at(self.time, node.orelse)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit_at("function", node.body)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._visit_at("function", node.body)

    def _visit_at(self, time: Time, body: list[ast.stmt]) -> None:
        before, self.time = self.time, time
        for statement in body:
            self.visit(statement)
        self.time = before


def _assignments(node: ast.Import | ast.ImportFrom, repository: Path, hoisted: set[str]) -> str:
    """Return what stands in a function in place of an import, and note the modules that it takes names from."""
    parts = []
    for alias in node.names:
        name = alias.name if isinstance(node, ast.Import) else f"{node.module}.{alias.name}"
        if not is_ours(name):  # beside one of ours in the same statement
            parts.append(f"import {ast.unparse(alias)}")
            continue
        module = _existing(name, repository)
        hoisted.add(module)
        attribute = name.removeprefix(module)  # empty where the module itself is imported
        parts.append(f"{alias.asname or alias.name} = {_alias(module)}{attribute}")
    return "; ".join(parts)


def _alias(module: str) -> str:
    return "_" + module.replace(".", "_")


def _existing(name: str, repository: Path) -> str:
    """Return the module that a name is, or that defines it."""
    module = find_module(name, repository)
    if module is None or not _defines(module, name.removeprefix(module).lstrip("."), repository):
        raise BundleError(f"{name} must be in a module of this repository, got no such name")
    return module


def _defines(module: str, attribute: str, repository: Path) -> bool:
    """Return whether a module has a name of its own, such as a class or its method; true without a name."""
    file = _file_of(module, repository)
    name = attribute.partition(".")[0]
    if file is None or not name:
        return file is not None
    table = symtable.symtable(file.read_text(encoding="utf-8"), str(file), "exec")
    symbol = table.lookup(name) if name in table.get_identifiers() else None
    return symbol is not None and (symbol.is_assigned() or symbol.is_imported())


def _file_of(module: str, repository: Path) -> Path | None:
    path = repository.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _insert(lines: list[str], line: int, column: int) -> None:
    text = lines[line - 1]
    lines[line - 1] = f"{text[:column]}{PACKAGE}.{text[column:]}"


def _replace(lines: list[str], node: ast.stmt, text: str) -> None:
    """Replace a statement of one or several lines."""
    end = node.end_lineno or node.lineno
    after = lines[end - 1][node.end_col_offset or 0 :]
    lines[node.lineno - 1 : end] = [lines[node.lineno - 1][: node.col_offset] + text + after]
