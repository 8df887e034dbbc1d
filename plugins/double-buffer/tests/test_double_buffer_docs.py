"""The page on the double buffer shows the phases as they are, and names every event and setting of ours."""

from __future__ import annotations

import re
from pathlib import Path

from dbproxy_double_buffer.phases import diagram

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "double-buffer.md").read_text("utf-8")
SOURCES = "".join(path.read_text("utf-8") for path in sorted(Path(diagram.__code__.co_filename).parent.glob("*.py")))


def test_the_diagram_is_current():
    shown = PAGE.partition("```mermaid\n")[2].partition("```")[0]
    assert shown == diagram(), f"put this into docs/double-buffer.md:\n{diagram()}"


def test_every_event_is_named():
    emitted = set(re.findall(r'_emit\(\s*"([a-z_]+)"|\.emit\(\s*"([a-z_]+)"', SOURCES))
    names = {one or other for one, other in emitted}
    assert len(names) > 10
    assert {name for name in names if f"`{name}`" not in PAGE} <= {"buffer_crashed", "buffer_not_kept"}


def test_every_setting_that_is_read_is_named():
    read = set(
        re.findall(r'"((?:buffer|checkpoint|swap|compact)_[a-z_]*(?:tokens|seconds|threshold|adaptive))"', SOURCES)
    )
    assert len(read) >= 6
    assert {name for name in read if f"`{name}`" not in PAGE} == set()


def test_every_field_of_a_swaps_record_is_told():
    record = re.search(r"record = \{\n(.*?)\n    \}", SOURCES, re.DOTALL)
    assert record is not None
    fields = set(re.findall(r'^\s+"([a-z_]+)":', record[1], re.MULTILINE)) - {"checkpoint", "checkpoint_exchange"}
    assert len(fields) >= 8
    assert {name for name in fields if f"`{name}`" not in PAGE} == set()
