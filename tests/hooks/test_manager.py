"""Discovery: installed, in the plugin directory, single files; nothing broken stops the start."""

from __future__ import annotations

import os
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from dbproxy.errors import PluginError
from dbproxy.hooks.manager import PluginManager, PluginRow, describe, site_folder
from dbproxy.hooks.specs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

GOOD = """
    from dbproxy.hooks.specs import hookimpl

    @hookimpl
    def health():
        return {"here": __name__}
"""


@pytest.fixture(autouse=True)
def clean_imports() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith(("dbproxy_plugin_file_", "sample_", "json_of_ours")):
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "plugins"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def distribution(folder: Path) -> Callable[..., Path]:
    """Put an unpacked wheel into the plugin directory."""

    def make(name: str, code: str, *, entry: str | None = None, metadata: str | None = None) -> Path:
        site = site_folder(folder)
        site.mkdir(exist_ok=True)
        (site / f"sample_{name}.py").write_text(textwrap.dedent(code))
        info = site / f"sample_{name}-1.2.dist-info"
        info.mkdir()
        info.joinpath("entry_points.txt").write_text(entry or f"[dbproxy]\n{name} = sample_{name}\n")
        info.joinpath("METADATA").write_text(metadata or f"Metadata-Version: 2.1\nName: sample-{name}\nVersion: 1.2\n")
        return info

    return make


def ours(manager: PluginManager) -> list[PluginRow]:
    return [row for row in manager.rows() if row.source != "installed"]


def error_of(manager: PluginManager, name: str) -> str:
    row = next(row for row in manager.rows() if row.name == name)
    assert row.state == "failed"
    assert name not in manager.names()
    return row.error


def test_directory_and_files(folder, distribution) -> None:
    distribution("wheel", GOOD)
    (folder / "single.py").write_text(textwrap.dedent(GOOD))
    (folder / "_helper.py").write_text("raise SystemExit")
    (folder / "notes.txt").write_text("no plugin")
    manager = PluginManager()
    manager.discover(folder)
    assert ours(manager) == [
        PluginRow("wheel", "1.2", "directory", "loaded"),
        PluginRow("single", "", "file", "loaded"),
    ]
    modules = {impl.plugin_name: impl.function()["here"] for impl in manager.implementations("health")[:2]}
    assert modules == {"single": "dbproxy_plugin_file_single", "wheel": "sample_wheel"}
    assert sys.path[-1] == str(site_folder(folder))


def test_the_directory_cannot_replace_modules(folder, distribution) -> None:
    distribution("wheel", "import colorsys\n" + textwrap.dedent(GOOD))
    (site_folder(folder) / "colorsys.py").write_text("raise RuntimeError")
    sys.modules.pop("colorsys", None)
    manager = PluginManager()
    manager.discover(folder)
    assert [row.state for row in ours(manager)] == ["loaded"]


@pytest.mark.parametrize("missing", [True, False])
def test_no_directory(tmp_path, missing) -> None:
    manager = PluginManager()
    manager.discover(tmp_path / "missing" if missing else None)
    assert ours(manager) == []


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("raise ValueError('secret')", "ValueError at bad.py:1"),
        ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("import sys; sys.exit(2)", "SystemExit at bad.py:1"),
        ("def broken(:", "SyntaxError"),
        ("x = 1", "it implements no hook. Mark its functions with dbproxy.api.hookimpl"),
        (GOOD.replace("health", "helth"), "there is no hook helth. Did you mean health?"),
        (GOOD.replace("health()", "health(nonsense)"), "PluginValidationError: "),
        (GOOD.replace("@hookimpl", "@hookimpl(wrapper=True)").replace("return", "yield"), "health: hook wrappers are"),
        (GOOD.replace("def health", "async def stream_tap"), "stream_tap must be a plain function, not async"),
        (GOOD + "\n    dbproxy_api = (2, 0)", "it was written for plugin interface 2.0, this is 1.2. Update dbproxy"),
        (GOOD + "\n    dbproxy_api = (1, 9)", "it was written for plugin interface 1.9, this is 1.2. Update dbproxy"),
        (
            GOOD + "\n    dbproxy_api = (0, 1)",
            "it was written for plugin interface 0.1, this is 1.2. Update the pl",
        ),
        (GOOD + "\n    dbproxy_api = '1'", "dbproxy_api is not a pair of numbers"),
    ],
)
def test_broken_files(folder, code, error) -> None:
    (folder / "bad.py").write_text(textwrap.dedent(code).lstrip())
    (folder / "good.py").write_text(textwrap.dedent(GOOD))
    manager = PluginManager()
    manager.discover(folder)
    assert error_of(manager, "bad").startswith(error)
    assert "good" in manager.names()
    assert not any(impl.plugin_name == "bad" for impl in manager.implementations("health"))
    with pytest.raises(PluginError, match="plugin bad"):
        PluginManager(strict=True).discover(folder)


def test_broken_distributions(folder, distribution) -> None:
    distribution("raises", "1 / 0")
    distribution("gone", GOOD, entry="[dbproxy]\ngone = sample_not_there\n")
    distribution("attribute", GOOD, entry="[dbproxy]\nattribute = sample_attribute:missing\n")
    distribution("garbage", GOOD, entry="[dbproxy]\n= = =\n")
    distribution("nameless", GOOD, metadata="Metadata-Version: 2.1\n")
    distribution("bytes", GOOD).joinpath("entry_points.txt").write_bytes(b"[dbproxy]\n\xff\xfe\n")
    distribution("other", GOOD, entry="[console_scripts]\ndbproxy-x = sample_other:health\n")
    distribution("good", GOOD)
    manager = PluginManager()
    manager.discover(folder)
    states = {row.name: row.state for row in ours(manager)}
    assert states.pop("good") == "loaded"
    assert {"raises", "gone", "attribute"} <= set(states)
    assert set(states.values()) == {"failed"}
    assert "other" not in states
    assert error_of(manager, "raises") == "ZeroDivisionError at sample_raises.py:1"


def test_classes_are_made(folder) -> None:
    (folder / "single.py").write_text("")
    manager = PluginManager()

    class Plugin:
        @hookimpl
        def health(self) -> dict[str, object]:
            return {"type": type(self).__name__}

    class Demanding(Plugin):
        def __init__(self, needed: int) -> None: ...

    assert manager.register(Plugin, "class")
    assert manager.implementations("health")[0].function() == {"type": "Plugin"}
    assert not manager.register(Demanding, "demanding")
    assert error_of(manager, "demanding").startswith("TypeError")


def test_same_name_twice(folder, distribution) -> None:
    distribution("twin", GOOD)
    (folder / "twin.py").write_text(textwrap.dedent(GOOD))
    manager = PluginManager()
    manager.discover(folder)
    assert [(row.source, row.state) for row in ours(manager)] == [("directory", "loaded"), ("file", "failed")]
    assert "already there (directory 1.2)" in ours(manager)[1].error


def test_allow_list_and_disabled_are_not_imported(folder) -> None:
    for name in ("one", "two", "three"):
        (folder / f"{name}.py").write_text(textwrap.dedent(GOOD))
    manager = PluginManager(allow=["one", "two"], disabled=["two"])
    manager.discover(folder)
    assert {row.name: row.state for row in ours(manager)} == {"one": "loaded", "two": "disabled", "three": "not listed"}
    assert "dbproxy_plugin_file_two" not in sys.modules
    assert "dbproxy_plugin_file_three" not in sys.modules
    assert all(row.state == "not listed" for row in manager.rows() if row.source == "installed")
    assert manager.enable("two")
    assert not manager.enable("three")
    assert not manager.enable("nobody")
    assert manager.names() == ["one", "two"]


def test_disable_and_enable() -> None:
    manager, changes = PluginManager(), []
    manager.on_change.append(lambda: changes.append(manager.names()))
    manager.register(_plugin(), "a")
    manager.disable("a")
    manager.disable("a")
    manager.disable("unknown")
    assert manager.implementations("health") == []
    assert manager.enable("a")
    assert manager.enable("a")
    manager.unregister("a")
    manager.unregister("a")
    assert changes == [["a"], [], ["a"], []]
    assert manager.rows() == []


def _plugin() -> object:
    class Plugin:
        @hookimpl
        def health(self) -> dict[str, object]:
            return {}

    return Plugin()


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_a_directory_that_everybody_can_write_to(folder) -> None:
    (folder / "single.py").write_text(textwrap.dedent(GOOD))
    folder.chmod(0o777)
    manager = PluginManager()
    manager.discover(folder)
    assert "everybody may write" in ours(manager)[0].error
    assert "dbproxy_plugin_file_single" not in sys.modules


def test_optional_hooks_of_newer_versions(manager) -> None:
    class Plugin:
        @hookimpl
        def health(self) -> dict[str, object]:
            return {}

        @hookimpl(optionalhook=True)
        def hook_of_tomorrow(self, anything: object) -> None: ...

    assert manager.register(Plugin(), "modern")


def test_the_token_meter_is_installed_by_its_entry_point() -> None:
    manager = PluginManager(allow=["token-meter"], strict=True)
    manager.discover()
    row = next(row for row in manager.rows() if row.name == "token-meter")
    assert (row.source, row.state) == ("installed", "loaded")
    assert row.version
    assert [impl.plugin_name for impl in manager.implementations("stream_tap")] == ["token-meter"]


def test_describe_names_no_contents() -> None:
    def fail() -> None:
        raise KeyError("secret")

    with pytest.raises(KeyError) as caught:
        fail()
    assert describe(ExceptionGroup("secret", [caught.value])).startswith("KeyError at test_manager.py:")
