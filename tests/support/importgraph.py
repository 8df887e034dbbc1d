"""The import graph of a source tree, by ast alone: nothing is executed.

Owns reading; the rules stand in test_layering.py. A relative import is resolved, `from package import name` points at
the module of that name where there is one, and an import for type checkers only is marked as such.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Import:
    """One import statement's target: a dotted module name, as far as modules of the tree are known.

    `deferred` imports stand inside a function, so that they happen when it is called and not when the module loads.
    """

    target: str
    line: int
    typing_only: bool
    deferred: bool = False


@dataclass(frozen=True, slots=True)
class Module:
    """A source file: its dotted name, its tree and its imports."""

    name: str
    path: Path
    is_package: bool
    tree: ast.Module
    imports: tuple[Import, ...]


def read_tree(root: Path, *folders: str) -> dict[str, Module]:
    """Every module under the folders of a root, by dotted name relative to it."""
    files = {name: path for folder in folders for name, path in _files(root, folder)}
    return {name: read_module(name, path, frozenset(files)) for name, path in files.items()}


def read_module(name: str, path: Path, known: frozenset[str]) -> Module:
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    is_package = path.name == "__init__.py"
    package = name if is_package else name.rpartition(".")[0]
    return Module(name, path, is_package, tree, tuple(_imports(tree, package, known)))


def cycles(modules: dict[str, Module]) -> list[list[str]]:
    """Strongly connected groups of more than one module, each sorted; only what happens while a module loads counts.

    A module's step to its own package does not count unless it imports a name from it: Python has loaded it by then.
    """
    edges = {
        name: {i.target for i in module.imports if not (i.typing_only or i.deferred) and i.target in modules} - {name}
        for name, module in modules.items()
    }
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in edges[name]:
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in sorted(edges):
        if name not in index:
            visit(name)
    return found


def _files(root: Path, folder: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((root / folder).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _imports(tree: ast.Module, package: str, known: frozenset[str]) -> Iterator[Import]:
    typing_lines = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.body
        for line in _import_lines(statement)
    }
    deferred = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for line in _import_lines(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, node.lineno in typing_lines, node.lineno in deferred)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            for alias in node.names:
                inner_name = f"{base}.{alias.name}"
                target = inner_name if inner_name in known else base
                yield Import(target, node.lineno, node.lineno in typing_lines, node.lineno in deferred)


def _import_lines(node: ast.AST) -> Iterator[int]:
    return (inner.lineno for inner in ast.walk(node) if isinstance(inner, ast.Import | ast.ImportFrom))
