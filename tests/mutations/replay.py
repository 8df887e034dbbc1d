"""Replays one-line mutations on a scratch copy: the test that names an item must turn red when its line is spoilt.

    python tests/mutations/replay.py [WORD]...     all mutations, or those whose item, file or test holds a word

Every `*.toml` beside this file lists mutations:

    [[mutation]]
    item = "N3"                                     the conformance item that the test stands for
    file = "dbproxy/wire/h1.py"
    old = "    if length < 0:"                      one whole line; it must occur exactly once
    new = "    if length < -1:"
    test = "tests/wire/test_h1.py::test_n3_…"       a node id

The scratch copy has a virtual environment of its own that sees the copy instead of the working tree and shares the
installed packages, so that subprocesses of a test run the spoilt code too. A test must pass on the unspoilt copy, and
fail (not merely not be collected) on the spoilt one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
_SECONDS = 300.0
_KEYS = {"item", "file", "old", "new", "test"}
_PYTEST = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", "--tb=no"]
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".cache", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis")
_RED = 1  # pytest's exit code for failed tests; anything else is no verdict


class Unusable(Exception):
    """A mutation that cannot be replayed, and why."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """One spoilt line and the test that must notice."""

    item: str
    file: str
    old: str
    new: str
    test: str

    def spoil(self, source: str) -> str:
        """The source with the one line replaced."""
        lines = source.split("\n")
        places = [number for number, line in enumerate(lines) if line == self.old]
        if len(places) != 1:
            raise Unusable(f"{self.file}: the line occurs {len(places)} times: {self.old.strip()}")
        if self.old == self.new:
            raise Unusable(f"{self.file}: the new line is the old one")
        lines[places[0]] = self.new
        spoilt = "\n".join(lines)
        try:
            compile(spoilt, self.file, "exec")
        except SyntaxError as error:
            raise Unusable(f"{self.file}: the new line is no Python: {error}") from error
        return spoilt


def read_mutations(files: Iterable[Path]) -> list[Mutation]:
    found = []
    for file in files:
        for entry in tomllib.loads(file.read_text(encoding="utf-8")).get("mutation", []):
            if set(entry) != _KEYS:
                raise Unusable(
                    f"{file.name}: a mutation needs exactly {', '.join(sorted(_KEYS))}; one has {', '.join(entry)}"
                )
            found.append(Mutation(**entry))
    return found


class Copy:
    """A scratch copy of a working tree with a Python that imports from it."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = folder / "tree"
        shutil.copytree(root, self.root, ignore=_LEFT_OUT, symlinks=True)
        venv.create(self.root / ".venv", with_pip=False, symlinks=True)
        self._bin = self.root / ".venv" / "bin"
        self.python = self._bin / "python"
        site = Path(sysconfig.get_path("purelib", vars={"base": str(self.root / ".venv")}))
        plugins = sorted(path.parent for path in (self.root / "plugins").glob("*/pyproject.toml"))
        sources = [folder / "src" if (folder / "src").is_dir() else folder for folder in plugins]
        # Paths in a .pth are searched in order; the shared packages come last and their own .pth files do not count.
        shared = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
        (site / "copy.pth").write_text("\n".join(map(str, [self.root, *sources, *dict.fromkeys(shared)])) + "\n")
        self._programs()
        if (root / ".cache").is_dir():
            (self.root / ".cache").symlink_to(root / ".cache")
        self._clock = 0

    def _programs(self) -> None:
        """Console scripts start the copy's Python; other programs are shared."""
        for program in Path(sys.executable).parent.iterdir():
            target = self._bin / program.name
            if target.exists() or target.is_symlink() or not program.is_file():
                continue
            head, _, rest = program.read_bytes().partition(b"\n")
            if head.startswith(b"#!") and b"python" in head:
                target.write_bytes(b"#!" + os.fsencode(self.python) + b"\n" + rest)
                target.chmod(0o755)
            else:
                target.symlink_to(program)

    def write(self, file: str, source: str) -> None:
        """Replaces a file; its time moves on, so that no compiled file of an earlier state is taken for it."""
        path = self.root / file
        path.write_text(source, encoding="utf-8")
        self._clock += 10
        time = path.stat().st_mtime + self._clock
        os.utime(path, (time, time))

    def run(self, tests: Sequence[str]) -> tuple[int, str]:
        """Exit code of pytest and what it said."""
        env = dict(os.environ, VIRTUAL_ENV=str(self.root / ".venv"), DBPROXY_TEST_CACHE=str(_cache()))
        env.pop("PYTHONPATH", None)
        try:
            result = subprocess.run(
                [str(self.python), *_PYTEST, *tests],
                cwd=self.root,
                env=env,
                capture_output=True,
                text=True,
                timeout=_SECONDS,
                stdin=subprocess.DEVNULL,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return -1, f"no end after {_SECONDS:.0f} s"
        return result.returncode, (result.stdout + result.stderr).strip()


def _cache() -> Path:
    return Path(os.environ.get("DBPROXY_TEST_CACHE") or ROOT / ".cache" / "realclient")


def replay(copy: Copy, mutation: Mutation) -> str:
    """Empty if the test turned red, else what went wrong. The copy is whole again afterwards."""
    source = (copy.root / mutation.file).read_text(encoding="utf-8")
    try:
        copy.write(mutation.file, mutation.spoil(source))
        code, said = copy.run([mutation.test])
    except Unusable as error:
        return str(error)
    finally:
        copy.write(mutation.file, source)
    if code == _RED:
        return ""
    return "survived" if code == 0 else f"no verdict (exit {code}): {said[-500:]}"


def replay_all(root: Path, mutations: Sequence[Mutation]) -> list[str]:
    """Replays them and prints each verdict; returns the complaints."""
    with tempfile.TemporaryDirectory(prefix="dbproxy-mutations-") as folder:
        copy = Copy(root, Path(folder))
        tests = list(dict.fromkeys(mutation.test for mutation in mutations))
        code, said = copy.run(tests)
        if code != 0:
            return [f"the unspoilt copy does not pass (exit {code}):\n{said[-3000:]}"]
        complaints = []
        for mutation in mutations:
            complaint = replay(copy, mutation)
            print(f"{'KEPT' if complaint else 'red '}  {mutation.item:5} {mutation.test}", flush=True)
            if complaint:
                complaints.append(f"{mutation.item} {mutation.test}: {complaint}")
        return complaints


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*")
    words = parser.parse_args(arguments).words
    try:
        mutations = read_mutations(sorted(HERE.glob("*.toml")))
    except (Unusable, tomllib.TOMLDecodeError) as error:
        print(f"mutations: {error}", file=sys.stderr)
        return 1
    chosen = [m for m in mutations if not words or any(w in (m.item, m.file) or w in m.test for w in words)]
    if not chosen:
        print("mutations: none" if not words else f"mutations: none for {' '.join(words)}", file=sys.stderr)
        return 1 if words else 0
    complaints = replay_all(ROOT, chosen)
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    print(f"{len(chosen)} mutations, {len(complaints)} complaints")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
