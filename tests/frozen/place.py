"""Runs a command where some folders cannot be written, or in a root that holds nothing but what it was given.

    python place.py [--read-only FOLDER]... [--full FOLDER]... [--no-exec FOLDER]... -- COMMAND [ARGS...]
    python place.py --root FOLDER [--show FOLDER]... -- COMMAND [ARGS...]

The first form puts an empty file system of that kind over a folder, in a mount namespace that ends with the command.
--root makes the folder the command's root, with /proc and /dev, and the folders to show at their usual places.
Needs root or user namespaces. ``make_root`` fills such a root: a shell, its tools and their libraries; no Python.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "realclient"))

import isolate

MS_RDONLY, MS_REMOUNT = 0x1, 0x20
# What the one file names in its head, what a client's shell needs, and what the tests call.
TOOLS = ("sh", "bash", "tail", "gzip", "tar", "mktemp", "sha256sum", "wc", "rm", "mv", "mkdir", "chmod", "sed", "cat")
TOOLS += ("cksum", "od", "tr", "env", "true", "ls", "ln", "cp", "uname", "readlink", "dirname", "head", "rmdir", "id")


def own_mounts() -> None:
    user, group = os.getuid(), os.getgid()
    if user != 0:
        isolate._unshare(isolate.CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    isolate._unshare(isolate.CLONE_NEWNS)
    isolate._mount("none", "/", "", isolate.MS_REC | isolate.MS_PRIVATE)


def cover(folder: Path, kind: str) -> None:
    flags = isolate.MS_NOSUID | isolate.MS_NODEV
    if kind == "no-exec":
        isolate._mount("tmpfs", str(folder), "tmpfs", flags | isolate.MS_NOEXEC)
    elif kind == "full":
        checked = isolate._libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", flags, b"size=64k,mode=1777")
        isolate._checked(checked, f"mount a small file system on {folder}")
        try:
            (folder / "filler").write_bytes(bytes(64 * 1024))
        except OSError:
            pass  # full, as it should be
    else:
        isolate._mount("tmpfs", str(folder), "tmpfs", flags)
        isolate._mount("none", str(folder), "", flags | MS_REMOUNT | MS_RDONLY)


def enter(root: Path, show: list[Path]) -> None:
    for folder in [Path("/proc"), Path("/dev"), *show]:
        inside = root / folder.relative_to("/")
        inside.mkdir(parents=True, exist_ok=True)
        isolate._mount(str(folder), str(inside), "", isolate.MS_BIND | isolate.MS_REC)
    os.chroot(root)
    os.chdir("/")


def libraries(program: Path) -> set[Path]:
    told = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False).stdout
    return {Path(found) for found in re.findall(r"(/\S+) \(0x", told)}


def make_root(root: Path, *programs: Path) -> None:
    """An empty system around the C library: tools and their libraries, and what ``programs`` (which are not copied) may
    expect of any system: the C library's parts, and zlib, which PyInstaller's loader is linked to."""
    for name in ("bin", "etc", "tmp", "home/me", "usr/bin", "var/tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    needed: set[Path] = set()
    for tool in TOOLS:
        found = shutil.which(tool, path="/usr/bin:/bin")
        assert found is not None, tool
        shutil.copy(Path(found).resolve(), root / "usr" / "bin" / tool)
        needed |= libraries(Path(found))
    for program in programs:
        needed |= {
            path for path in libraries(program) if re.match(r"(ld-|lib(c|m|dl|rt|pthread|util|resolv|z)\.)", path.name)
        }
    for path in needed:
        target = root / path.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path.resolve(), target)
    for tool in TOOLS:
        os.link(root / "usr" / "bin" / tool, root / "bin" / tool)
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/home/me:/bin/sh\n")
    (root / "etc" / "hosts").write_text("127.0.0.1 localhost\n")
    (root / "etc" / "nsswitch.conf").write_text("hosts: files dns\n")
    (root / "etc" / "resolv.conf").write_text("nameserver 127.0.0.1\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("--read-only", "--full", "--no-exec", "--show"):
        parser.add_argument(option, type=Path, action="append", default=[])
    parser.add_argument("--root", type=Path)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    try:
        own_mounts()
        for kind in ("read-only", "full", "no-exec"):
            for folder in getattr(options, kind.replace("-", "_")):
                cover(folder, kind)
        if options.root is not None:
            enter(options.root, options.show)
        os.execvp(options.command[0], options.command)
    except (isolate.NoIsland, OSError) as error:
        print(f"place: {error}", file=sys.stderr)
    return 125


if __name__ == "__main__":
    sys.exit(main())
