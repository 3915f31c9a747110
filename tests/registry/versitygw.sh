#!/bin/sh
# Builds versitygw, a real S3 server over a plain folder, into the user's cache, and prints where it lies.
# Needs go; takes minutes the first time and nothing after that.
set -eu
version=v1.8.0
cache="${XDG_CACHE_HOME:-$HOME/.cache}/triton-controlplane/versitygw-$version"
if [ ! -x "$cache/versitygw" ]; then
    mkdir -p "$cache"
    # One build at a time: a second one waits, and finds the work done.
    exec 9>"$cache/.lock"
    flock 9
fi
if [ ! -x "$cache/versitygw" ]; then
    beside=$(mktemp -d "$cache/.build-XXXXXX")
    trap 'rm -rf "$beside"' EXIT
    GOBIN="$beside" CGO_ENABLED=0 go install -trimpath -ldflags='-s -w' "github.com/versity/versitygw/cmd/versitygw@$version" >&2
    mv -f "$beside/versitygw" "$cache/versitygw"
fi
echo "$cache/versitygw"
