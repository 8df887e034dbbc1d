"""``python -m dbproxy.config --markdown``: the page of settings on stdout."""

from __future__ import annotations

import sys

from dbproxy.config.docs import markdown

if __name__ == "__main__":
    if sys.argv[1:] != ["--markdown"]:
        sys.exit("usage: python -m dbproxy.config --markdown")
    sys.stdout.write(markdown())
