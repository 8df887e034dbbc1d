"""The text form of samples."""

from __future__ import annotations

import pytest

from dbproxy.hooks.metrics import Sample, render


def test_render_groups_by_name_and_escapes() -> None:
    text = render(
        [
            Sample("a_total", 1, {"x": 'q"\\\n'}, help="One\nline \\."),
            Sample("b", 0.25, kind="gauge"),
            Sample("a_total", 1e20, {"x": "2", "y": ""}),
        ]
    )
    assert text == (
        "# HELP a_total One\\nline \\\\.\n# TYPE a_total counter\n"
        'a_total{x="q\\"\\\\\\n"} 1\na_total{x="2",y=""} 1e+20\n# TYPE b gauge\nb 0.25\n'
    )


def test_odd_numbers() -> None:
    lines = render(Sample("a", value) for value in (float("nan"), float("inf"), -float("inf"), 3.0, 10**15, True))
    values = [line.split()[1] for line in lines.splitlines()[1:]]
    assert values == [
        "NaN",
        "+Inf",
        "-Inf",
        "3",
        "1000000000000000.0",
        "1",
    ]


def test_empty() -> None:
    assert render([]) == ""


@pytest.mark.parametrize(
    "sample",
    [
        Sample("", 1),
        Sample("1a", 1),
        Sample("a\n", 1),
        Sample("a b", 1),
        Sample("a", 1, {"b c": ""}),
        Sample("a", 1, {"__x": ""}),
        Sample("a", 1, kind="histogram"),  # type: ignore[arg-type]
        Sample("a", "1"),  # type: ignore[arg-type]
        Sample("a", 1, {"b": 5}),  # type: ignore[dict-item]
        Sample("a", 1, help=5),  # type: ignore[arg-type]
        Sample(5, 1),  # type: ignore[arg-type]
        Sample("a", 1, [("b", "c")]),  # type: ignore[arg-type]
    ],
)
def test_check(sample: Sample) -> None:
    with pytest.raises(ValueError):
        sample.check()
