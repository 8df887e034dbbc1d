"""Finishes a folder that PyInstaller made: gives it a name of its own, and packs it as an archive and as one file.

Used by pyinstaller.spec; the standard library alone. The same folder always gives the same bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import platform as machine
import shutil
import tarfile
import zipfile
from pathlib import Path

import elf

ROOT = Path(__file__).resolve().parent.parent
STUB = Path(__file__).resolve().parent / "frozen" / "onefile.sh"
INSTALLER = Path(__file__).resolve().parent / "install.sh"
MARK = "BUILD"
SEED_NAME = "claude-db-proxy"
# Long ago, so that a version counts as fresh from its first start on, and not from its build.
_MTIME = 946_684_800


def libc() -> str:
    """The C library that a Linux build needs at run time, with its version: ``glibc2.36``."""
    name, version = machine.libc_ver()
    return f"{name}{version}" or "libc"


def version() -> str:
    """dbproxy's version, from its source."""
    line = (ROOT / "dbproxy" / "__init__.py").read_text().split("__version__ = ", 1)[1].splitlines()[0]
    return line.strip().strip("\"'")


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


def digest(folder: Path) -> str:
    """Over the names, kinds and contents of all files but the mark."""
    total = hashlib.sha256()
    for path in entries(folder):
        name = path.relative_to(folder).as_posix()
        if name == MARK:
            continue
        content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        kind = "link" if path.is_symlink() else "program" if os.access(path, os.X_OK) else "file"
        total.update(f"{name}\0{kind}\0{len(content)}\0".encode() + content)
    return total.hexdigest()


def seal(folder: Path) -> str:
    """Write the build's name, VERSION-DIGEST, into the folder; it names the folder wherever versions lie side by side.

    Also takes the build machine's folders out, and adds the installer and the older tool's command name. Returns the
    build's name.
    """
    for path in entries(folder):
        if path.is_file() and not path.is_symlink():
            elf.forget_search_paths(path)
    unzip_library(folder)
    shutil.copy(INSTALLER, folder / INSTALLER.name)
    (folder / INSTALLER.name).chmod(0o755)
    alias = folder / SEED_NAME
    if os.name == "posix" and not alias.is_symlink():
        alias.symlink_to("dbproxy")
    build = f"{version()}-{digest(folder)[:12]}"
    (folder / MARK).write_text(build + "\n")
    return build


def unzip_library(folder: Path) -> None:
    """Turn the archive of the modules that Python itself needs to start into a folder of that name.

    The same place on the module path, but read without the zip importer, which is slow Python: 5 of 45 ms of a start.
    """
    for archive in folder.rglob("base_library.zip"):
        if archive.is_file():
            packed = archive.rename(archive.with_name("base_library.packed"))
            with zipfile.ZipFile(packed) as file:
                file.extractall(archive)
            packed.unlink()


def _tar_gz(folder: Path, name: str) -> bytes:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in entries(folder):
            # The mark comes last: where it is, everything is.
            if path.name != MARK or path.parent != folder:
                _add(tar, path, f"{name}/{path.relative_to(folder).as_posix()}")
        _add(tar, folder / MARK, f"{name}/{MARK}")
    return gzip.compress(plain.getvalue(), 9, mtime=0)


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    info = tar.gettarinfo(path, name)
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mtime = _MTIME
    info.mode = 0o755 if info.mode & 0o100 else 0o644
    if info.type == tarfile.LNKTYPE:  # hard links would depend on how the folder was copied
        info.type, info.size = tarfile.REGTYPE, path.stat().st_size
    if info.isfile():
        with path.open("rb") as file:
            tar.addfile(info, file)
    else:
        tar.addfile(info)


def pack(folder: Path, platform: str) -> tuple[Path, Path]:
    """Write ``dbproxy-VERSION-PLATFORM.tar.gz`` and the one file of the same name without ending beside the folder."""
    build = (folder / MARK).read_text().strip()
    payload = _tar_gz(folder, build)
    name = f"dbproxy-{version()}-{platform}"
    archive, single = folder.with_name(name + ".tar.gz"), folder.with_name(name)
    archive.write_bytes(payload)
    needed = sum(path.lstat().st_size for path in entries(folder)) // 1_000_000 + 5
    stub = _stub(build, platform, payload, needed)
    single.write_bytes(stub + payload)
    single.chmod(0o755)
    return archive, single


def _stub(build: str, platform: str, payload: bytes, needed: int) -> bytes:
    values = {"BUILD": build, "VERSION": version(), "PLATFORM": platform, "NEEDED": str(needed)}
    values["SHA256"] = hashlib.sha256(payload).hexdigest()
    size = 0
    while True:  # the numbers in the text change its length
        filled = STUB.read_text("utf-8")
        for key, value in (values | {"OFFSET": str(size + 1), "SIZE": str(size + len(payload))}).items():
            filled = filled.replace(f"@{key}@", value)
        text = filled.encode()
        if len(text) == size:
            return text
        size = len(text)
