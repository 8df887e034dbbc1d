"""Writes the example's files into docs/providers-writing.md: ``python tests/testing/toy_provider/page.py``."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[2] / "docs" / "providers-writing.md"
FILES = ("parrot_provider.py", "parrot_dialect.py", "test_parrot.py")


def with_files(page: str) -> str:
    """The page with the files as they stand, each in the block that its name introduces."""
    for name in FILES:
        code = (HERE / name).read_text(encoding="utf-8")
        pattern = re.compile(rf"(`{re.escape(name)}`[^`]*```python\n).*?(```\n)", re.DOTALL)
        page, found = pattern.subn(lambda match, code=code: match[1] + code + match[2], page)
        if found != 1:
            raise ValueError(f"{name} is introduced {found} times")
    return page


if __name__ == "__main__":
    PAGE.write_text(with_files(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
