# Every recipe of the project. `python3 packaging/bootstrap.py just NAME` runs one on a machine without `just`.
set positional-arguments

python := if path_exists(justfile_directory() / ".venv/bin/python") == "true" { justfile_directory() / ".venv/bin/python" } else { "python3" }

# list the recipes
default:
    @just --justfile "{{ justfile() }}" --list

# make .venv with everything that development needs
init:
    @python3 packaging/bootstrap.py just --version

# style, types, import graph, spelling
lint:
    "{{ python }}" -m ruff check
    "{{ python }}" -m ruff format --check --exclude "*.md"
    "{{ python }}" -m mypy
    "{{ python }}" -m codespell_lib --config packaging/codespell.cfg
    "{{ python }}" -m pytest -q -p no:cacheprovider tests/test_layering.py

# mend what ruff can mend
format:
    "{{ python }}" -m ruff check --fix
    "{{ python }}" -m ruff format --exclude "*.md"

# fetch the real clients and the TypeScript SDK once (some 440 MB from npm); nothing with DBPROXY_TEST_OFFLINE=1
clients:
    @"{{ python }}" tests/realclient/clients.py
    @"{{ python }}" tests/support/ts/fetch.py

# everything but the soak: lint, then all tests
test *ARGS: lint clients (freeze "--for-tests")
    "{{ python }}" -m pytest -m "not soak" "$@"

# without the real clients, the executable and the minutes of load
test-fast *ARGS:
    "{{ python }}" -m pytest -m "not soak and not realclient and not frozen" "$@"

# only the real Claude Code, in its loopback-only namespace
realclient *ARGS: clients
    "{{ python }}" -m pytest -m "realclient and not soak" "$@"

# build the executable into dist/: a folder, the same as .tar.gz, and one file (nothing twice: kept in .cache/frozen)
freeze *ARGS:
    @"{{ python }}" packaging/freeze.py "$@"

# only the executable: builds it, then selftest, demo, a bare machine, the real client and more
frozen *ARGS: clients freeze
    "{{ python }}" -m pytest -m frozen "$@"

# one request through the real proxy, and the versions of everything inside
selftest *ARGS:
    "{{ python }}" -m dbproxy selftest "$@"

# an hour's load squeezed into minutes, and a hundred kills under the real client (25 minutes in all)
soak *ARGS: clients
    "{{ python }}" -m pytest -m soak --timeout 1800 "$@"

# case 95 at length, for the nightly run: 100,000 upstream streams through every codec, or DBPROXY_TEST_FUZZ of them
fuzz *ARGS:
    DBPROXY_TEST_FUZZ="${DBPROXY_TEST_FUZZ:-100000}" "{{ python }}" -m pytest -o faulthandler_timeout=0 tests/model/codecs/test_fuzz.py "$@"

# speed and memory beside the peers
bench *ARGS:
    "{{ python }}" tests/bench/run.py "$@"

# replay one-line mutations on a scratch copy: each named test must turn red
mutate *ARGS:
    "{{ python }}" tests/mutations/replay.py "$@"

# write the generated pages anew
docs:
    "{{ python }}" -m dbproxy.config --markdown > docs/settings.md
    "{{ python }}" -m dbproxy.cli.help > docs/cli.md
    "{{ python }}" -m dbproxy.hooks.document docs/hooks.md

# renew the locks from pyproject.toml
locks *ARGS:
    "{{ python }}" packaging/locks.py "$@"

# the demo: no account, no network
demo *ARGS:
    "{{ python }}" -m dbproxy demo "$@"

# what the tools left behind; the virtual environment and the fetched clients stay
clean:
    rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
    find . -name __pycache__ -not -path "./.venv/*" -not -path "./.cache/*" -prune -exec rm -rf {} +
