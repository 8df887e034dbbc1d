"""The one-dir executable: it works, is small, brings all that plugins need, and children see nothing of its loader."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import trio

from dbproxy.testing.origin import open_origin

pytestmark = [pytest.mark.frozen, pytest.mark.timeout(400)]
MEGABYTE = 1_000_000
LOADER_WORDS = ("_PYI", "_MEI", "PYINSTALLER", "_ORIG", "LD_LIBRARY_PATH", "DYLD_", "OPENSSL_MODULES")


def environment_of(text):
    return dict(line.partition("=")[::2] for line in text.splitlines() if "=" in line)


def load(name):
    """A module of packaging/."""
    file = Path(__file__).resolve().parents[2] / "packaging" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_under_test", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wait_for(what, seconds=20.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (found := what()) is not None:
            return found
        time.sleep(0.02)  # noqa: TID251  no event loop here
    raise AssertionError("it did not happen in time")


@pytest.fixture
def serving(built, own_home, start):
    """Starts ``dbproxy serve`` with further variables; gives the process and its record. All end with the test."""
    running = []

    def run(*words, **variables):
        data = own_home / f"data-{len(running)}"
        env = {"HOME": str(own_home), "PATH": os.defpath, "DBPROXY_DATA_DIR": str(data)}
        process = subprocess.Popen(
            [str(built.program), *words, "serve", "--listen", "127.0.0.1:0"],
            env=env | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        running.append(process)

        def record():
            assert process.poll() is None, process.stdout.read()
            try:
                return json.loads((data / "run" / "daemon.json").read_text())
            except (OSError, ValueError):
                return None

        return process, wait_for(record)

    yield run
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()


def ask(record, path="/health", **fields):
    with urllib.request.urlopen(
        urllib.request.Request(f"http://{record['listen'][0]}{path}", headers=fields), timeout=10
    ) as answer:
        return json.load(answer)


def test_it_says_what_it_is_and_that_it_works(built, start):
    done = start(built.program, "selftest", "--json")
    assert done.returncode == 0, done
    told = json.loads(done.stdout)
    assert told["ok"] is True
    assert told["versions"]["kind"] == "executable"
    assert "missing" not in told["versions"].values()
    loaded = sorted((plugin["name"], plugin["state"]) for plugin in told["plugins"])
    bundled = ("double-buffer", "providers", "subagent-routing", "token-meter")
    assert loaded == [(name, "loaded") for name in bundled]


def test_it_holds_the_versions_that_the_locks_name(built, start):
    lock = (Path(__file__).resolve().parents[2] / "packaging" / "requirements-build.txt").read_text()
    told = json.loads(start(built.program, "selftest", "--json").stdout)["versions"]
    for name in ("trio", "h11", "h2", "cryptography", "zstandard"):
        assert f"\n{name}=={told[name]} " in lock


def test_it_is_small_and_holds_nothing_superfluous(built):
    assert built.archive.stat().st_size < 40 * MEGABYTE
    assert built.single.stat().st_size < 40 * MEGABYTE
    names = {path.name for path in built.folder.rglob("*")}
    unwanted = ("setuptools", "pkg_resources", "numpy", "pip", "_tkinter", "pytest", "libtk", "libtcl")
    assert [name for name in names if name.startswith(unwanted)] == []
    assert [name for name in names if name.startswith("_cffi.") and "zstandard" in name] == []


def test_it_looks_for_libraries_in_no_folder_of_the_build_machine(built):
    elf = load("elf")
    files = [path for path in built.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    programs = [path for path in files if elf.is_elf(path.read_bytes())]
    assert len(programs) > 50
    found = {path.name: elf.search_paths(path.read_bytes()) for path in programs}
    assert {name: paths for name, paths in found.items() if any(elf.is_foreign(path) for path in paths)} == {}


def test_the_demo(built, start):
    done = start(built.program, "demo", timeout=120)
    assert done.returncode == 0, done
    assert "every byte identical" in done.stdout
    assert "begins with them: confirmed" in done.stdout


@pytest.mark.parametrize("mine", [None, "/opt/lib:/x y"])
def test_a_child_sees_nothing_of_the_loader(built, start, mine):
    extra = {} if mine is None else {"LD_LIBRARY_PATH": mine}
    try:
        done = start(built.program, "run", "--", "env", **extra)
        assert done.returncode == 0, done
        seen = environment_of(done.stdout)
        assert seen["DBPROXY_ACTIVE"] == "1"
        found = {name: value for name, value in seen.items() if any(word in name for word in LOADER_WORDS)}
        assert found == extra
    finally:
        stopped = start(built.program, "stop")
    assert "stopped" in stopped.stdout


def test_the_background_proxy_is_the_executable_and_keeps_a_clean_environment(built, start, own_home):
    folder = own_home / "data" / "plugins"
    folder.mkdir(parents=True)
    script = folder / "inquisitive.py"
    # What a plugin of the proxy would hand to the programs that it starts.
    script.write_text(
        "import json, os, subprocess\nfrom dbproxy.api import hookimpl\n"
        f"open({str(own_home / 'seen')!r}, 'w').write(subprocess.run(['env'], capture_output=True, text=True).stdout)\n"
        "@hookimpl\ndef startup(app): pass\n"
    )
    data = str(own_home / "data")
    try:
        done = start(built.program, "start", DBPROXY_DATA_DIR=data)
        assert done.returncode == 0, done
        record = json.loads((own_home / "data" / "run" / "daemon.json").read_text())
        assert os.readlink(f"/proc/{record['pid']}/exe") == str(built.program.resolve())
        assert ask(record)["plugins"]["inquisitive"]["state"] == "ok", ask(record)
    finally:
        start(built.program, "stop", DBPROXY_DATA_DIR=data)
    seen = environment_of((own_home / "seen").read_text())
    assert seen["HOME"] == str(own_home)
    assert [name for name in seen if any(word in name for word in LOADER_WORDS)] == []


def test_the_first_worker_goes_on_in_the_launched_process(built, start, own_home):
    run = own_home / "data" / "run"
    try:
        done = start(built.program, "run", "true", "nobody-elses-words", DBPROXY_DATA_DIR=str(run.parent))
        assert done.returncode == 0, done
        record = json.loads((run / "daemon.json").read_text())
        ask(record)
        note = json.loads((run / "supervisors" / f"{record['pid']}.json").read_text())
        [[worker, _]] = note["workers"]
        proc = Path(f"/proc/{worker}")
        assert proc.joinpath("exe").readlink() == built.program.resolve()
        words = proc.joinpath("cmdline").read_bytes().rstrip(b"\0")
        assert words.startswith(b"dbproxy\0work\0"), words
        assert b"nobody" not in words
        assert proc.joinpath("environ").read_bytes().strip(b"\0") == b""  # executed anew, it would have one
        held = [os.readlink(link) for link in proc.joinpath("fd").iterdir()]
        assert str(built.folder.resolve() / "BUILD") in held  # so that nobody tidies its version away
    finally:
        start(built.program, "stop", DBPROXY_DATA_DIR=str(run.parent))


def test_plugins_find_the_whole_standard_library(built, serving, own_home):
    folder = own_home / "data-0" / "plugins"
    folder.mkdir(parents=True)
    left_out = {"tkinter", "_tkinter", "turtle", "turtledemo", "idlelib", "test", "lib2to3", "ensurepip", "venv"}
    left_out |= {"distutils", "antigravity", "this", "_pyrepl"}
    wanted = sorted(name for name in sys.stdlib_module_names - left_out if importlib_finds(name))
    assert len(wanted) > 250
    submodules = ["xml.dom.minidom", "email.mime.multipart", "concurrent.futures.process", "http.cookiejar"]
    submodules += ["unittest.mock", "logging.handlers", "wsgiref.simple_server", "encodings.cp1252", "json.tool"]
    (folder / "greedy.py").write_text(
        "import importlib, warnings\nfrom dbproxy.api import hookimpl\nwarnings.simplefilter('ignore')\n"
        f"for name in {wanted + submodules!r}:\n    importlib.import_module(name)\n"
        "@hookimpl\ndef startup(app): pass\n"
    )
    _, record = serving()
    assert ask(record)["plugins"]["greedy"]["state"] == "ok", ask(record)["plugins"]


def importlib_finds(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # __main__ has no specification
        return False


def test_what_the_bundle_leaves_out_cannot_be_imported(built, serving, own_home):
    """Else the test above would pass by a Python that happens to be around."""
    folder = own_home / "data-0" / "plugins"
    folder.mkdir(parents=True)
    (folder / "hopeless.py").write_text(
        "import pytest\nfrom dbproxy.api import hookimpl\n@hookimpl\ndef startup(app): pass\n"
    )
    _, record = serving()
    assert "hopeless" not in ask(record)["plugins"] or ask(record)["plugins"]["hopeless"]["state"] != "ok"


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_it(serving, stop):
    process, record = serving()
    assert ask(record)["status"] == "ok"
    os.killpg(process.pid, stop)  # as a terminal does: the whole group, once
    assert process.wait(10) == 0, process.stdout.read()
    assert "Traceback" not in process.stdout.read()


def test_it_runs_from_a_path_with_spaces(built, start, tmp_path):
    place = tmp_path / "a folder with spaces, and ümlaut"
    subprocess.run(["cp", "-a", str(built.folder), str(place)], check=True)
    assert start(place / "dbproxy", "--version").stdout.startswith("dbproxy ")
    done = start(place / "dbproxy", "run", "--", "true")
    start(place / "dbproxy", "stop")
    assert (done.returncode, done.stderr) == (0, "")


def test_it_starts_by_a_link_and_from_the_path(built, start, tmp_path):
    (tmp_path / "dbproxy").symlink_to(built.program)
    (tmp_path / "claude-db-proxy").symlink_to(built.program)
    path = f"{tmp_path}:{os.defpath}"
    assert start("sh", "-c", "dbproxy --version", PATH=path).stdout.startswith("dbproxy ")
    assert "not running" in start("sh", "-c", "claude-db-proxy status", PATH=path).stdout


def test_no_usable_temporary_folder_is_said(built, start, aside, read_only_everywhere):
    shutil.copytree(built.folder, aside / "dbproxy", symlinks=True)
    program = aside / "dbproxy" / "dbproxy"
    done = start(*read_only_everywhere, program, "selftest")
    assert done.returncode == 1, done
    assert "temporary directory" in done.stderr
    assert "Traceback" not in done.stderr
    # What needs none works.
    assert start(*read_only_everywhere, program, "--version").returncode == 0


# ---- upstream trust: each source that the contract names -----------------------------------------------------------


@pytest.mark.parametrize("source", ["none", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "DBPROXY_UPSTREAM_CA", "option"])
def test_upstream_trust(serving, source):
    """A request to an upstream with a private authority gets through with each source, and not without."""

    async def main():
        async with open_origin("plain", tls=True) as origin:
            file = trio.Path(os.environ["HOME"], "company.pem")
            await file.write_bytes(origin.ca_pem)
            words = ["--upstream-ca", str(file)] if source == "option" else []
            variables = {source: str(file)} if source.isupper() else {}
            made = await trio.to_thread.run_sync(lambda: serving(*words, DBPROXY_UPSTREAM_URL=origin.url, **variables))
            return await trio.to_thread.run_sync(models, made[1])

    status = trio.run(main)
    assert (status == 200) is (source != "none"), status


def models(record):
    """A base-URL request's status."""
    body = json.dumps({"model": "claude-opus-5-5", "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]})
    request = urllib.request.Request(
        f"http://{record['listen'][0]}/v1/messages",
        body.encode(),
        {"content-type": "application/json", "x-api-key": "none", "anthropic-version": "2023-06-01"},
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
