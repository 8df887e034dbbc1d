"""``dbproxy certs``: run as people run it, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dbproxy.net.ca import Authority

HOST = "api.anthropic.com"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def certs(data: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    env = {"DBPROXY_DATA_DIR": str(data), "HOME": str(data.parent), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-m", "dbproxy", "certs", *words], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr
    return done


def test_show_makes_nothing(data: Path) -> None:
    done = certs(data, "show")
    assert f"No interception root for {HOST} yet" in done.stdout
    assert not (data / "ca").exists()
    assert json.loads(certs(data, "show", "--json").stdout)["current"] is None


def test_path_makes_the_root_and_prints_the_file(data: Path) -> None:
    path = Path(certs(data, "path").stdout.strip())
    assert path.read_bytes() == Authority.open(data / "ca", [HOST]).root_pem
    system = Path(certs(data, "path", "--with-system-roots").stdout.strip()).read_bytes()
    assert system.startswith(path.read_bytes())
    assert system.count(b"BEGIN CERTIFICATE") > 50
    assert b"PRIVATE" not in system


def test_show_tells_all(data: Path) -> None:
    root = Authority.open(data / "ca", [HOST]).current
    text = certs(data, "show").stdout
    for part in ("Interception root (current)", root.fingerprint, f"may sign     {HOST}", str(root.path), "bundle.pem"):
        assert part in text
    shown = json.loads(certs(data, "show", "--json").stdout)
    assert shown["current"] == root.fingerprint
    (only,) = shown["roots"]
    assert only["permitted"] == [HOST]
    assert only["state"] == "current"
    assert only["subject"].endswith("O=dbproxy")
    assert only["not_after"][:4] == str(int(only["not_before"][:4]) + 2)


def test_show_names_broken_files(data: Path) -> None:
    root = Authority.open(data / "ca", [HOST]).current
    root.path.write_bytes(b"half")
    text = certs(data, "show").stdout
    assert "root-0001.pem: the file is incomplete" in text
    assert root.path.read_bytes() == b"half"


def test_rotate_keeps_the_old_root(data: Path) -> None:
    old = Authority.open(data / "ca", [HOST]).current
    certs(data, "path", "--with-system-roots")
    text = certs(data, "rotate").stdout
    authority = Authority.open(data / "ca", [HOST])
    assert authority.current.fingerprint in text
    assert authority.roots[1].fingerprint == old.fingerprint
    assert authority.child_bundle_path.read_bytes().startswith(authority.current.pem + old.pem)
    states = [root["state"] for root in json.loads(certs(data, "show", "--json").stdout)["roots"]]
    assert states == ["older", "current"]


def test_rotate_and_forget_leaves_one_key(data: Path) -> None:
    old = Authority.open(data / "ca", [HOST])
    old.leaf_context(HOST)
    (data / "ca" / "root-0007.pem.broken").write_bytes(b"maybe a key")
    done = json.loads(certs(data, "rotate", "--forget-old", "--json").stdout)
    assert done["deleted"] == [old.current.fingerprint]
    authority = Authority.open(data / "ca", [HOST])
    assert authority.current.fingerprint == done["current"]
    assert [path.name for path in (data / "ca").glob("root-*")] == [authority.current.path.name]
    assert list((data / "ca" / "leaves").iterdir()) == []


def test_failures_are_one_line(data: Path) -> None:
    data.mkdir()
    (data / "ca").write_text("in the way")
    for action in ("path", "rotate", "show"):
        done = certs(data, action, code=1)
        assert done.stderr.startswith("dbproxy: the certificate folder")
        assert done.stderr.count("\n") == 1


def test_wrong_usage(data: Path) -> None:
    assert "ACTION" in certs(data, code=2).stderr
    certs(data, "burn", code=2)
