"""The example of a provider from elsewhere is importable by its tests, as an installed plugin would be."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "toy_provider"))
