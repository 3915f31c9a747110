#!/bin/sh
# Fetches Debian's Prometheus, with promtool, into the user's cache, and prints the folder where both lie. Needs apt-get
# and dpkg-deb, but no root: nothing is installed. Takes a few seconds the first time and nothing after that.
set -eu
cache="${XDG_CACHE_HOME:-$HOME/.cache}/triton-controlplane/prometheus-debian"
if [ ! -x "$cache/usr/bin/promtool" ]; then
    for needed in apt-get dpkg-deb; do
        if ! command -v "$needed" >/dev/null; then
            echo "$needed is missing, so Prometheus can't be fetched: put prometheus and promtool on PATH" >&2
            exit 1
        fi
    done
    mkdir -p "$(dirname "$cache")"
    # One at a time: a second one waits, and finds the work done.
    exec 9>"$cache.lock"
    flock 9
fi
if [ ! -x "$cache/usr/bin/promtool" ]; then
    beside=$(mktemp -d "$cache.XXXXXX")
    trap 'rm -rf "$beside"' EXIT
    cd "$beside"
    if ! apt-get -q download prometheus >&2; then
        # The machine's own package lists are absent or old: fetch some, for this once.
        mkdir -p lists/partial archives/partial
        own="-o Dir::State::lists=$beside/lists -o Dir::Cache=$beside -o Dir::Cache::archives=$beside/archives"
        apt-get -q $own -o APT::Sandbox::User= update >&2
        apt-get -q $own -o APT::Sandbox::User= download prometheus >&2
    fi
    dpkg-deb -x prometheus_*.deb unpacked
    rm -rf "$cache"
    mv unpacked "$cache"
fi
echo "$cache/usr/bin"
