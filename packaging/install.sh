#!/bin/sh
# Installs a built dbproxy for this user, without root and without network, and undoes itself.
#
#   install.sh [WHAT]       WHAT: the folder dbproxy, the .tar.gz, or the one-file executable; default: the folder that
#                           this script lies in, else dist/dbproxy beside packaging/
#   install.sh --uninstall  removes exactly what was installed; your data stays (`dbproxy uninstall --purge` first)
#
# Places: ~/.local/share/dbproxy-app/BUILD and the links dbproxy and claude-db-proxy in ~/.local/bin. An older version
# stays beside a newer one for as long as a process runs from it; the program removes it after that.
set -eu
umask 077

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

case ${HOME:-} in
    /*) [ -d "$HOME" ] || fail "your home $HOME is not there" ;;
    *) fail "HOME is not set" ;;
esac
apps=$HOME/.local/share/dbproxy-app
bin=$HOME/.local/bin
record=$apps/made-folders

usage() {
    sed -n 's/^# \{0,1\}//;3,7p' "$0"
}

# A folder with its parents; each one that was not there is noted, so that it can go again.
make_folder() {
    [ -d "$1" ] && return
    make_folder "$(dirname "$1")"
    mkdir "$1" || fail "cannot make $1"
    made="$1
${made-}"
}

is_ours() {
    [ -h "$1" ] || return 1
    case $(readlink "$1") in
        "$apps"/*) return 0 ;;
    esac
    return 1
}

may_link() {
    is_ours "$bin/$1" || [ ! -e "$bin/$1" ] && { [ ! -h "$bin/$1" ] || is_ours "$bin/$1"; } ||
        fail "$bin/$1 is there and not ours. Move it away, then run this again"
}

link() {
    ln -s "$apps/$build/$1" "$bin/.$1.new.$$"
    mv -f "$bin/.$1.new.$$" "$bin/$1" # at once: there is never a moment without the command
}

install() {
    what=$1
    [ -e "$what" ] || fail "$what is not there. Build it with: just freeze"
    may_link dbproxy
    may_link claude-db-proxy
    made=
    make_folder "$apps"
    make_folder "$bin"
    # Noted before anything else, so that an interrupted installation can be undone, too.
    printf '%s' "$made" >>"$record"
    if [ -d "$what" ]; then
        [ -f "$what/BUILD" ] || fail "$what is no folder of a built dbproxy: it has no file BUILD"
        build=$(cat "$what/BUILD")
        place "$build" copy
    else
        case $what in
            *.tar.gz)
                build=$(gzip -dc "$what" | tar -tf - | sed -n '1s,/.*,,p')
                [ -n "$build" ] || fail "$what is no archive of a built dbproxy"
                place "$build" extract
                ;;
            *)
                # It unpacks itself to where it takes its cache to be, in the same form.
                build=$(sed -n "s/^_dbp_build='\(.*\)'\$/\1/p;/^exit 126/q" "$what" | head -n 1)
                [ -n "$build" ] || fail "$what is neither a folder, an archive nor an executable of dbproxy"
                XDG_CACHE_HOME=$HOME/.local/share sh "$what" --version >/dev/null || fail "$what does not run here"
                ;;
        esac
    fi
    link dbproxy
    link claude-db-proxy
    echo "installed $("$bin/dbproxy" --version) ($build) in $apps"
    case :${PATH:-}: in
        *:"$bin":*) ;;
        *) echo "$bin is not on your PATH; add it:  export PATH=\"$bin:\$PATH\"" ;;
    esac
}

copy() {
    mkdir "$work/$build"
    (cd "$what" && tar -cf - .) | (cd "$work/$build" && tar -xof -)
}

extract() {
    gzip -dc "$what" | (cd "$work" && tar -xof -)
}

# A version becomes visible whole, under its name, or not at all.
place() {
    case $build in
        *[!A-Za-z0-9.+_-]* | .* | '') fail "$what names its build strangely" ;;
    esac
    if [ -f "$apps/$build/BUILD" ] && "$apps/$build/dbproxy" --version >/dev/null 2>&1; then
        return
    fi
    work=$apps/.unpack-$$
    trap 'rm -rf "$work"' EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    mkdir "$work"
    "$2" || fail "cannot write it to $apps. Is the disk full?"
    version=$("$work/$build/dbproxy" --version 2>&1) || fail "it does not run here: ${version#*: }"
    rm -rf "${apps:?}/$build"
    mv "$work/$build" "$apps/"
}

uninstall() {
    [ -d "$apps" ] || fail "nothing is installed in $apps"
    if is_ours "$bin/dbproxy" && [ -x "$bin/dbproxy" ]; then
        # The background proxy and the status line would need the program that goes now.
        said=$("$bin/dbproxy" uninstall 2>&1) || echo "install.sh: dbproxy uninstall failed; going on" >&2
        echo "$said" | sed '/^the program itself/d'
    fi
    for name in dbproxy claude-db-proxy; do
        if is_ours "$bin/$name"; then rm -f "$bin/$name"; fi
    done
    made=$(cat "$record" 2>/dev/null || :)
    for folder in "$apps"/* "$apps"/.unpack-*; do
        if [ -f "$folder/BUILD" ]; then rm -rf "$folder"; fi
        case ${folder##*/} in .unpack-*) rm -rf "$folder" ;; esac
    done
    rm -f "$record"
    # Innermost first, as they are noted; what holds something else by now stays.
    echo "$made" | while IFS= read -r folder; do
        if [ -n "$folder" ]; then rmdir "$folder" 2>/dev/null || :; fi
    done
    echo "removed dbproxy from $apps"
}

case ${1-} in
    -h | --help) usage ;;
    --uninstall) uninstall ;;
    -*)
        usage >&2
        exit 2
        ;;
    ?*) install "$1" ;;
    *)
        here=$(cd "$(dirname "$0")" && pwd)
        if [ -f "$here/BUILD" ]; then install "$here"; else install "$(dirname "$here")/dist/dbproxy"; fi
        ;;
esac
