"""The page of settings is current, and no setting is there for nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from dbproxy.config import core_table
from dbproxy.config.docs import markdown

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_current():
    page = ROOT / "docs" / "settings.md"
    assert page.read_text(encoding="utf-8") == markdown(), "python -m dbproxy.config --markdown > docs/settings.md"


def test_the_page_is_what_the_command_prints():
    done = subprocess.run([sys.executable, "-m", "dbproxy.config", "--markdown"], capture_output=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.decode() == markdown()
    assert subprocess.run([sys.executable, "-m", "dbproxy.config"], capture_output=True, timeout=60).returncode == 1


def test_every_setting_is_on_the_page_with_its_names_and_its_help():
    page = markdown()
    for spec in core_table().specs:
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{spec.key}`<br>")]
        for word in (spec.option, *spec.env, spec.help, spec.scope):
            assert word in row
        assert row.count("|") == 6


def settings_read(folders):
    """Every NAME in an expression ``settings.NAME`` or ``anything.settings.NAME``."""
    found = set()
    for folder in folders:
        for file in folder.rglob("*.py"):
            if "tests" in file.parts or file.is_relative_to(ROOT / "dbproxy" / "config"):
                continue
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    owner = node.value
                    name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
                    if name.endswith("settings"):
                        found.add(node.attr)
                elif isinstance(node, ast.Call) and "plugins" in file.parts:
                    # A plugin gets the settings as a mapping: settings.get("NAME"), number(settings, "NAME", ...).
                    found |= {item.value for item in node.args if isinstance(item, ast.Constant)}
    return found


def test_every_setting_is_read_somewhere():
    read = settings_read([ROOT / "dbproxy", ROOT / "plugins"])
    unread = {spec.name for spec in core_table().specs} - read
    # A setting that nothing reads is a promise that nothing keeps.
    assert unread == set()
