"""The layers of the architecture, enforced from the import graph: who may import whom, and which outside modules."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import importgraph
import pytest

ROOT = Path(__file__).resolve().parent.parent

BASE = ("errors", "paths", "config", "exchange", "scope", "state")
# Left to right: a group may import every group to its left, and nothing of its own but its own folder.
GROUPS = (("wire", "model"), ("net", "store", "proc", "hooks"), ("app",), ("api", "testing"), ("cli",), ("__main__",))
EVERYWHERE = frozenset({*BASE, *(name for group in GROUPS for name in group)})

# Outside module -> the folders that may import it; a module that is not named here may be imported anywhere.
ONLY_IN = {
    "asyncio": (),
    "trio": ("net", "store", "proc", "hooks", "app", "api", "testing", "cli"),
    "sqlite3": ("store",),
    "sqlite_utils": ("store",),
    "subprocess": ("proc", "cli", "testing"),
    "multiprocessing": (),
    "pluggy": ("hooks", "api"),
    "h11": ("wire", "testing"),
    "h2": ("wire", "testing"),
    "trustme": ("net", "testing"),
    "cryptography": ("net", "testing"),
    "truststore": ("net",),
    "argparse": ("cli", "testing"),
    "pytest": ("testing",),
}
# wire and model compute; they neither reach out nor look at a clock.
PURE = ("wire", "model", "exchange", "errors")
NOT_PURE = (
    "socket",
    "ssl",
    "select",
    "selectors",
    "time",
    "threading",
    "os",
    "subprocess",
    "pathlib",
    "tempfile",
    "http",
)
ENVIRONMENT = ("config", "proc", "cli", "paths", "testing")
LONGEST_FILE = 600


def layer(name: str) -> str:
    """`dbproxy.net.tls` -> `net`; the package itself belongs to the base."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "errors"


def may_import(importer: str, imported: str) -> bool:
    """Whether one part of dbproxy may import another."""
    if importer == imported or imported in BASE:
        return True
    if importer in BASE:
        return False
    place = {name: position for position, group in enumerate(GROUPS) for name in group}
    return place[imported] < place[importer]


def violations(modules: dict[str, object]) -> list[str]:
    found = []
    for name, module in modules.items():
        own = layer(name)
        if own not in EVERYWHERE:
            found.append(f"{name}: {own} is no part of the architecture")
            continue
        for item in module.imports:
            top = item.target.partition(".")[0]
            where = f"{name}:{item.line} imports {item.target}"
            if top == "dbproxy":
                if not may_import(own, layer(item.target)):
                    found.append(f"{where}: {own} may not import {layer(item.target)}")
                if own == "net" and layer(item.target) == "model":
                    found.append(f"{where}: net has no domain knowledge")
            elif top in ONLY_IN and own not in ONLY_IN[top]:
                found.append(f"{where}: only in {', '.join(ONLY_IN[top]) or 'no part'}")
            elif top in NOT_PURE and own in PURE:
                found.append(f"{where}: {own} does no I/O and reads no clock")
        if own not in ENVIRONMENT:
            found += [f"{name}:{line} reads the environment" for line in environment_uses(module.tree)]
    return found + ["import cycle: " + ", ".join(group) for group in importgraph.cycles(modules)]


def environment_uses(tree: ast.Module) -> list[int]:
    names = {"environ", "environb", "getenv", "putenv", "unsetenv"}
    return [
        node.lineno
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in names and ast.unparse(node.value) == "os")
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and names & {alias.name for alias in node.names})
    ]


def plugin_violations(folder: Path) -> list[str]:
    """A plugin's code imports dbproxy.api alone, its tests dbproxy.testing too, and neither another plugin."""
    plugins = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    packages = {plugin: {path.name.removesuffix(".py") for path in _top_level(plugin)} for plugin in plugins}
    found = []
    for plugin in plugins:
        foreign = set().union(*(names for other, names in packages.items() if other != plugin)) - packages[plugin]
        for name, module in importgraph.read_tree(folder, plugin.name).items():
            allowed = {"api", "testing"} if "tests" in module.path.relative_to(plugin).parts else {"api"}
            for item in module.imports:
                parts = item.target.split(".")
                outside = parts[0] == "dbproxy" and (len(parts) < 2 or parts[1] not in allowed)
                if outside or parts[0] in foreign or parts[0] == "asyncio":
                    found.append(f"{name}:{item.line} imports {item.target}")
    return found


def _top_level(plugin: Path) -> list[Path]:
    source = plugin / "src" if (plugin / "src").is_dir() else plugin
    return [path for path in source.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]


@pytest.fixture(scope="module")
def modules() -> dict[str, object]:
    found = importgraph.read_tree(ROOT, "dbproxy")
    assert "dbproxy.errors" in found
    return found


def test_every_import_keeps_the_layers(modules):
    assert violations(modules) == []


def test_plugins_import_only_the_public_surface():
    assert plugin_violations(ROOT / "plugins") == []


def test_every_file_says_what_it_owns_and_fits_the_head(modules):
    silent = [name for name, module in modules.items() if ast.get_docstring(module.tree) is None and module.tree.body]
    assert silent == []
    lengths = {name: len(module.path.read_text().splitlines()) for name, module in modules.items()}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_the_command_line_starts_without_the_event_loop_and_the_cryptography():
    """The launcher stands in front of every agent's start: heavy imports belong inside functions."""
    heavy = ("trio", "cryptography", "h11", "h2", "sqlite3", "asyncio")
    script = f"import dbproxy.cli, sys; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("wire/x.py", "import trio", "only in"),
        ("wire/x.py", "import time", "no clock"),
        ("wire/x.py", "from dbproxy.model import y", "may not import model"),
        ("net/x.py", "from dbproxy.proc import y", "may not import proc"),
        ("net/x.py", "from ..app import y", "may not import app"),
        ("net/x.py", "import dbproxy.model", "no domain knowledge"),
        ("app/x.py", "if True:\n    from dbproxy.cli import y", "may not import cli"),
        ("app/x.py", "def f():\n    import sqlite3", "only in store"),
        ("app/x.py", "import os\nos.environ['A']", "reads the environment"),
        ("app/x.py", "from os import getenv", "reads the environment"),
        ("api/x.py", "from dbproxy.testing import y", "may not import testing"),
        ("config.py", "from dbproxy.wire import y", "may not import wire"),
        ("app/x.py", "import asyncio.subprocess", "no part"),
        ("extra/x.py", "", "no part of the architecture"),
        ("app/x.py", "from dbproxy.app import z", "import cycle: dbproxy.app.x, dbproxy.app.z"),
    ],
)
def test_a_violation_is_caught(tmp_path, path, source, complaint):
    files = {"__init__.py": "", "app/__init__.py": "", "app/z.py": "from . import x", path: source}
    for name, text in files.items():
        file = tmp_path / "dbproxy" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    if "cycle" not in complaint:
        (tmp_path / "dbproxy/app/z.py").unlink()
    found = violations(importgraph.read_tree(tmp_path, "dbproxy"))
    assert any(complaint in line for line in found), found
    assert len(found) == 1


def test_what_the_layers_allow_is_not_caught(tmp_path):
    files = {
        "__init__.py": "",
        "errors.py": "",
        "net/__init__.py": "import trio\nfrom dbproxy.wire import h1\nfrom dbproxy.errors import X",
        "wire/__init__.py": "",
        "wire/h1.py": "import h11",
        "app/__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import run",
        "app/run.py": "from dbproxy import app, net",
        "app/one.py": "from dbproxy.app import two",
        "app/two.py": "def later():\n    from dbproxy.app import one",
        "cli/__init__.py": "import os\nprint(os.environ)\nfrom dbproxy.app import run",
    }
    for name, text in files.items():
        file = tmp_path / "dbproxy" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert violations(importgraph.read_tree(tmp_path, "dbproxy")) == []


def test_a_plugin_that_reaches_inside_is_caught(tmp_path):
    files = {
        "one/dbproxy_one/__init__.py": "from dbproxy.api import hook\nimport dbproxy_two",
        "one/tests/test_one.py": "import dbproxy.testing",
        "two/dbproxy_two/__init__.py": "from dbproxy.net import tls",
    }
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert plugin_violations(tmp_path) == [
        "one.dbproxy_one:2 imports dbproxy_two",
        "two.dbproxy_two:1 imports dbproxy.net",
    ]
