"""What the executable runs first. Started under the name `claude-db-proxy`, it speaks that command's language."""

from __future__ import annotations

import os
import sys

from dbproxy.proc import frozen

if __name__ == "__main__":
    frozen.start()
    if sys.argv[1:2] != ["supervise"]:  # that one uses nothing which would import it
        frozen.put_off("inspect")
    from dbproxy import cli

    name = os.path.basename(sys.argv[0]).removesuffix(".exe")
    sys.exit(cli.main_seed() if name == "claude-db-proxy" else cli.main())
