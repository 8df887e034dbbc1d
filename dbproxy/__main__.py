"""``python -m dbproxy``: the same program as the ``dbproxy`` command."""

from dbproxy.cli import main

raise SystemExit(main())
