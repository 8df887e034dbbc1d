"""What the tracked files may not say, and that the documents that are generated or referred to are there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Put together from pieces, so that this file does not find itself.
FORBIDDEN = {
    "the address of a package registry": "|".join(
        re.escape(".".join(parts))
        for parts in (
            ("registry", "npmjs", "org"),
            ("registry", "yarnpkg", "com"),
            ("pypi", "org"),
            ("files", "pythonhosted", "org"),
            ("crates", "io"),
            ("proxy", "golang", "org"),
            ("rubygems", "org"),
        )
    ),
    "a path of one machine": r"(?<![\w./-])/(?:"
    + "|".join(("wo" + "rk", "ro" + "ot", "tmp/br" + "ief", "opt/py" + "pi"))
    + r")/",
    "a model API key": "sk-" + r"(?:ant-[a-z0-9]+-)?(?=[\w-]*\d)[A-Za-z0-9_-]{32,}",
    "a key of a code host": "(?:gh[pousr]_|glpat-|npm_)" + r"[A-Za-z0-9]{20,}",
    "a cloud access key": "AKIA" + r"[0-9A-Z]{16}",
    "a private key": "-----BEGIN " + r"(?:[A-Z]+ )?PRIVATE KEY-----",
    "a note to finish later": r"\b(?:TO" + "DO|FIX" + "ME|XX" + r"X)\b",
}
SAMPLES = {
    "the address of a package registry": "https://" + "registry.npmjs" + ".org/x",
    "a path of one machine": "see " + "/wo" + "rk/main",
    "a model API key": "sk-" + "ant-api03-" + "0123456789abcdef" * 2,
    "a key of a code host": "ghp" + "_0123456789abcdef0123",
    "a cloud access key": "AK" + "IA0123456789ABCDEF",
    "a private key": "-----BEGIN" + " EC PRIVATE KEY-----",
    "a note to finish later": "# TO" + "DO: later",
}


def complaints(text: str) -> list[str]:
    return [f"{what}: {match[0]}" for what, pattern in FORBIDDEN.items() if (match := re.search(pattern, text))]


def tracked() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, timeout=60, check=True).stdout
    return [ROOT / name.decode() for name in listing.split(b"\0") if name and (ROOT / name.decode()).is_file()]


def test_no_tracked_file_names_a_registry_a_machine_or_a_secret():
    found = {}
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if wrong := complaints(text):
            found[str(path.relative_to(ROOT))] = wrong
    assert found == {}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_each_of_these_would_be_found(what):
    assert [line.partition(":")[0] for line in complaints(f"a line\n{SAMPLES[what]}\n")] == [what]


def test_links_between_our_documents_lead_somewhere():
    links = [
        (path, target)
        for path in tracked()
        if path.suffix == ".md"
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
        if "://" not in target and not target.startswith("mailto:")
    ]
    broken = [f"{path.relative_to(ROOT)}: {target}" for path, target in links if not (path.parent / target).exists()]
    assert broken == []


def test_recipes_that_documents_name_exist():
    recipes = set(re.findall(r"^([a-z][\w-]*)(?: \*\w+)?:(?!=)", (ROOT / "justfile").read_text(), re.MULTILINE))
    named = {
        (path.name, recipe)
        for path in tracked()
        if path.suffix == ".md"
        for recipe in re.findall(r"`just ([a-z][\w-]*)", path.read_text(encoding="utf-8"))
    }
    assert {pair for pair in named if pair[1] not in recipes} == set()
    assert {"demo", "test", "lint", "realclient", "bench", "soak", "mutate", "docs", "locks", "clean"} <= recipes
