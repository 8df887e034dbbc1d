"""A tool's input that is nearly JSON, made JSON: what local models and loose servers write.

Pure; time grows with the length only. Invariants: text that is a JSON object comes back as it is; what cannot be read
as an object is None, never a guess about missing values.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from typing import Any, Final

from dbproxy.model import shapes

_FENCE: Final = "```"
#: A whole string, or a comma with nothing but the closing bracket behind it.
_TRAILING: Final = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\Z)|,(?=\s*+[}\]])', re.DOTALL)
_LONGEST: Final = 1 << 20


def arguments(text: str) -> dict[str, Any] | None:
    """The object that ``text`` means, None if it means none. An empty text is an empty object."""
    if not text.strip():
        return {}
    found = _object(text)
    if found is not None:
        return found
    if len(text) > _LONGEST:
        return None
    text = _unfenced(text.strip())
    for candidate in (text, _TRAILING.sub(lambda match: match[0] if match[0] != "," else "", text)):
        found = _object(candidate)
        if found is not None:
            return found
    return _literal(text)


def _unfenced(text: str) -> str:
    """What stands in a code block, with or without a language, from its first brace on."""
    if not (text.startswith(_FENCE) and text.endswith(_FENCE)):
        return text
    language, brace, rest = text[len(_FENCE) : -len(_FENCE)].partition("{")
    return brace + rest if brace and (not language.strip() or language.strip().isalpha()) else text


def _object(text: str) -> dict[str, Any] | None:
    value = shapes.parse(text.encode("utf-8", "surrogatepass"))
    if isinstance(value, str):  # encoded twice
        value = shapes.parse(value.encode("utf-8", "surrogatepass"))
    return value if isinstance(value, dict) else None


def _literal(text: str) -> dict[str, Any] | None:
    """A Python dictionary, as ``{'path': 'x', 'all': True}``, also with JSON's own words in it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" is no escape in Python, and means itself
            tree = ast.parse(text.strip(), mode="eval").body
        value = _plain(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError, TypeError):
        return None
    return value if isinstance(value, dict) and shapes.written(value) else None


_WORDS: Final = {"true": True, "false": False, "null": None}


def _plain(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | bool | None):
        if isinstance(node.value, float) and not math.isfinite(node.value):
            raise ValueError("a number beyond JSON's")
        return node.value
    if isinstance(node, ast.Name) and node.id in _WORDS:
        return _WORDS[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_plain(node.operand)
    if isinstance(node, ast.List | ast.Tuple):
        return [_plain(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        found = {}
        for key, value in zip(node.keys, node.values, strict=True):
            name = _plain(key) if key is not None else None
            if not isinstance(name, str):
                raise ValueError("a key that is no text")
            found[name] = _plain(value)
        return found
    raise ValueError("no literal")
