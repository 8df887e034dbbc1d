"""The executable on a machine with a C library, a shell and its tools, and nothing else: no Python, no certificates."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import clients
import island as islands
import pytest
from place import make_root

pytestmark = [pytest.mark.frozen, pytest.mark.timeout(400)]
PROGRAM = "/opt/db proxy/dbproxy"


@pytest.fixture(params=["one file", "folder"])
def bare(request, built, tmp_path):
    """The root of such a machine, with the executable on it."""
    root = tmp_path / "machine"
    make_root(
        root,
        built.program,
        *built.folder.glob("_internal/lib*.so*"),
        *(client.path for client in clients.CLIENTS if not client.on_node),
    )
    target = root / PROGRAM.removeprefix("/")
    if request.param == "folder":
        shutil.copytree(built.folder, target.parent, symlinks=True)
    else:
        target.parent.mkdir(parents=True)
        shutil.copy(built.single, target)
    return root


@pytest.fixture
def there(bare, place, start):
    """Runs a command on the bare machine."""

    def run(*command, **variables):
        given = {"HOME": "/home/me", "PATH": "/usr/bin:/bin", "DBPROXY_LISTEN": "127.0.0.1:0"} | variables
        return start(*place, "--root", bare, "--", *command, timeout=120, **given)

    return run


def test_there_is_no_python(bare, there):
    assert there("sh", "-c", "command -v python3 || command -v python").returncode == 127
    assert list((bare / "usr").rglob("*python*")) == []
    assert [path for path in bare.rglob("*.pem") if "opt" not in path.parts] == []


def test_selftest_and_demo(there):
    done = there(PROGRAM, "selftest")
    assert done.returncode == 0, done
    assert "executable" in done.stdout
    demo = there(PROGRAM, "demo")
    assert demo.returncode == 0, demo
    assert "every byte identical" in demo.stdout


def test_without_certificates_the_bundled_ones_serve(bare, there):
    try:
        done = there(PROGRAM, "run", "sh", "-c", 'cat "$SSL_CERT_FILE"')
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.count("BEGIN CERTIFICATE") > 100
    finally:
        there(PROGRAM, "stop")


def test_install_and_uninstall(bare, there, built):
    installer = bare / "install.sh"
    shutil.copy(built.folder / "install.sh", installer)
    done = there("sh", "/install.sh", PROGRAM if built_is_single(bare) else str(Path(PROGRAM).parent))
    assert done.returncode == 0, done
    assert there("sh", "-c", "dbproxy --version", PATH="/home/me/.local/bin:/usr/bin:/bin").returncode == 0
    done = there("sh", "/install.sh", "--uninstall")
    assert done.returncode == 0, done
    assert list((bare / "home/me").iterdir()) == []


def built_is_single(bare):
    return not (bare / PROGRAM.removeprefix("/")).with_name("BUILD").exists()


# ---- the real client ------------------------------------------------------------------------------------------------


@pytest.fixture(params=clients.CLIENTS, ids=lambda client: client.version)
def client(request):
    if request.param.command() is None:
        pytest.skip(f"client {request.param.version} is not fetched: run `just clients`")
    return request.param


def test_the_real_client_through_the_executable(client, place, built, tmp_path):
    island = islands.Island(tmp_path, client)
    island.program("dbproxy", f'exec {shlex.quote(str(built.program))} "$@"')
    script = {"scenario": "tools", "options": {"steps": 2}}
    words = ("-p", "please do it", "--allowedTools", "Bash")
    story = island.run(script, island.step("dbproxy", "claude", *words), island.step("dbproxy", "stop"))
    assert [step.code for step in story.steps] == [0, 0], story
    assert story.steps[0].stderr == "", story
    assert "All done." in story.steps[0].stdout, story
    assert story.roles == ["main"] * 3, story
    assert set(story.asked) <= {"api.anthropic.com"}, story
    # The commands that the client ran told the API what they saw: nothing of our loader.
    assert all(b"_PYI_" not in request.body and b"LD_LIBRARY_PATH" not in request.body for request in story.requests)


def test_the_real_client_on_the_bare_machine(bare, place, tmp_path):
    client = clients.NEWEST
    if client.command() is None:
        pytest.skip(f"client {client.version} is not fetched: run `just clients`")
    island = islands.Island(tmp_path / "island", client)
    inside = [*place, "--root", str(bare), "--show", str(island.folder), "--show", str(client.folder), "--"]
    variables = {"PATH": f"{island.programs}:/usr/bin:/bin", "SHELL": "/bin/bash"}
    claude = island.step(*inside, PROGRAM, "claude", "-p", "hi", env=variables)
    story = island.run({"scenario": "plain"}, claude, island.step(*inside, PROGRAM, "stop", env=variables))
    assert [step.code for step in story.steps] == [0, 0], story
    assert story.steps[0].stderr == "", story
    assert "OK from the fake API." in story.steps[0].stdout, story
    assert story.roles == ["main"], story
    assert set(story.asked) <= {"api.anthropic.com"}, story
