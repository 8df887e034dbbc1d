#!/bin/sh
# dbproxy @VERSION@ for @PLATFORM@ in one file: this script, and behind its last line the program's folder as tar.gz.
# It unpacks itself once, into ~/.cache/dbproxy-app/BUILD, and from then on only hands over to the program there.
# Names begin with _dbp, so that no variable of the person's changes for the child; nothing is written to a temporary
# folder. Needs sh, tail, gzip, tar and the like; no Python.

_dbp_build='@BUILD@'
case ${XDG_CACHE_HOME:-} in
    /*) _dbp_cache=$XDG_CACHE_HOME ;;
    *) case ${HOME:-} in /*) _dbp_cache=$HOME/.cache ;; *) _dbp_cache= ;; esac ;;
esac
_dbp_apps=$_dbp_cache/dbproxy-app
_dbp_home=$_dbp_apps/$_dbp_build
_dbp_name=${0##*/}
[ "$_dbp_name" = claude-db-proxy ] || _dbp_name=dbproxy

_dbp_usable() {
    [ -x "$_dbp_home/dbproxy" ] && [ -f "$_dbp_home/BUILD" ]
}

# In a subshell, since the mask, the locale and the traps must not reach the child. Fails with one line on stdout that
# says what is wrong.
_dbp_unpack() (
    umask 077
    LC_ALL=C
    export LC_ALL
    stop() {
        echo "$*"
        exit 1
    }
    room="Make room there (@NEEDED@ MB), or set XDG_CACHE_HOME to a folder that has it"
    [ -n "$_dbp_cache" ] || stop "HOME is not set, so there is no place to unpack to. Set HOME or XDG_CACHE_HOME"
    wrong=$(mkdir -p "$_dbp_apps" 2>&1) || stop "cannot make $_dbp_apps (${wrong##*: }). $room"
    [ -O "$_dbp_apps" ] || stop "$_dbp_apps belongs to another user. Set XDG_CACHE_HOME to a folder of yours"
    chmod 700 "$_dbp_apps" 2>/dev/null
    size=$(wc -c <"$0") || stop "cannot read $0. Give its full path"
    [ "$((size))" -eq @SIZE@ ] || stop "$0 is incomplete ($((size)) of @SIZE@ bytes). Fetch it again"
    payload() { tail -c +@OFFSET@ "$0"; }
    if command -v sha256sum >/dev/null 2>&1; then
        sum=$(payload | sha256sum)
    elif command -v shasum >/dev/null 2>&1; then
        sum=$(payload | shasum -a 256)
    else
        sum='@SHA256@' # the gzip format has a checksum of its own, too
    fi
    [ "${sum%% *}" = '@SHA256@' ] || stop "$0 is damaged (its contents have another checksum). Fetch it again"
    # What another start left that was killed outright. Process ids mean something only where this one lives: here, and
    # not in a container or on a machine that shares the home.
    where=$({ uname -n && readlink /proc/self/ns/pid; } 2>/dev/null | cksum)
    where=${where%% *}
    for left in "$_dbp_apps/.unpack-$where-"*-*; do
        pid=${left#"$_dbp_apps/.unpack-$where-"}
        pid=${pid%%-*}
        [ ! -d "$left" ] || [ -h "$left" ] || kill -0 "$pid" 2>/dev/null || rm -rf "$left"
    done
    # The name is known, and the traps are set, before the folder is made: at whatever moment a signal comes, it goes.
    work=$_dbp_apps/.unpack-$where-$$-$(od -An -N6 -tx1 /dev/urandom 2>/dev/null | tr -d ' ')
    trap 'trap "" HUP INT TERM; rm -rf "$work"' EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    wrong=$(mkdir "$work" 2>&1) || stop "cannot write in $_dbp_apps (${wrong##*: }). $room"
    wrong=$({ { payload | gzip -dc || echo damaged >&3; } | tar -xof - -C "$work" 3>&-; } 3>"$work/status" 2>&1)
    result=$?
    case $wrong in
        *"o space left"* | *uota*) stop "no space left in $_dbp_apps. $room" ;;
    esac
    [ "$result" -eq 0 ] && [ ! -s "$work/status" ] || stop "cannot unpack into $_dbp_apps (${wrong##*: }). $room"
    # Not the right machine, too old a system library, a folder from which nothing may be executed: said here and now.
    wrong=$("$work/$_dbp_build/dbproxy" --version 2>&1) || stop "the unpacked program does not run here: ${wrong#*: }"
    # Renaming a folder onto one that is not empty fails, so that of two starts at once exactly one succeeds; a target
    # that is not whole makes way first.
    [ ! -d "$_dbp_home" ] || _dbp_usable || mv "$_dbp_home" "$work/broken" 2>/dev/null
    mv "$work/$_dbp_build" "$_dbp_apps/" 2>/dev/null || _dbp_usable || stop "cannot rename within $_dbp_apps"
)

if ! _dbp_usable; then
    # Waits until the subshell has cleaned up, then ends as anybody would who is interrupted. Exec forgets traps.
    trap 'trap - HUP; kill -HUP $$' HUP
    trap 'trap - INT; kill -INT $$' INT
    trap 'trap - TERM; kill -TERM $$' TERM
    _dbp_why=$(_dbp_unpack) || {
        _dbp_code=$?
        [ -n "$_dbp_why" ] || exit "$_dbp_code" # interrupted
        # A launch never fails for our sake: the agent starts without the proxy. Our own options stand before the word.
        _dbp_last=
        while [ "$_dbp_name" = dbproxy ] && [ $# -gt 0 ]; do
            case $1 in
                claude) break ;;
                run)
                    shift
                    [ "${1-}" != -- ] || shift
                    break
                    ;;
                -*) _dbp_last=$1 ;;
                *)
                    case $_dbp_last in
                        --*=* | '') set -- ;;
                        --*) _dbp_last= ;;
                        *) set -- ;;
                    esac
                    [ $# -gt 0 ] || break
                    ;;
            esac
            shift
        done
        [ "$_dbp_name" = dbproxy ] || set -- claude "$@"
        if [ $# -gt 0 ] && command -v "$1" >/dev/null 2>&1; then
            echo "dbproxy: OFF for this run: $_dbp_why. $1 starts without the proxy" >&2
            exec "$@"
        fi
        echo "dbproxy: $_dbp_why" >&2
        exit 1
    }
fi
# A foreign folder is never run from, whatever it holds.
[ -O "$_dbp_home/BUILD" ] || {
    echo "dbproxy: $_dbp_home belongs to another user. Set XDG_CACHE_HOME to a folder of yours" >&2
    exit 1
}
exec "$_dbp_home/$_dbp_name" "$@"
exit 126
