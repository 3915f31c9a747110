#!/usr/bin/env bash
# build.sh PROGRAM...: makes parts of Kubernetes and what they need, where they are missing, in the user's cache, and
# prints the folder where all of them lie. Needs Go (11 minutes for everything, once) and, for etcd, apt-get and
# dpkg-deb; no root, for nothing is installed.
#   kube-apiserver kube-controller-manager kubectl kubelet kube-proxy kube-scheduler   from the Go module proxy
#   pause                                                                             from pause/ beside this file
#   etcd                                                                              PATH's, else Debian's
set -euo pipefail
version=1.34.4
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "${XDG_CACHE_HOME:-$HOME/.cache}/triton-controlplane/kubernetes-$version"
cache=$(cd "${XDG_CACHE_HOME:-$HOME/.cache}/triton-controlplane/kubernetes-$version" && pwd)

say() { echo "kubernetes: $*" >&2; }
need() {
    command -v "$1" >/dev/null || { say "$1 is missing: it is needed for $2"; exit 1; }
}

# k8s.io/kubernetes asks for its "staging" modules by paths inside its repository, which the published module lacks. Each
# is published on its own as v0.<minor>.<patch>: the list is in its go.mod, and one is replaced by the other.
write_module() {
    local module=k8s.io/kubernetes go_mod
    go_mod=$(cd / && go mod download -json "$module@v$version" | sed -n 's/^\t"GoMod": "\(.*\)",$/\1/p')
    {
        echo "module kubernetes"
        # The language version and the godebug setting decide what happens at run time: the ones that upstream tests.
        sed -n '/^go /p; /^godebug/p' "$go_mod"
        echo "require $module v$version"
        sed -n "s|^[[:space:]]*\(k8s.io/[^ ]*\) => ./staging/.*|replace \1 => \1 v0.${version#*.}|p" "$go_mod"
    } >"$1"
}

from_kubernetes() {
    local about=k8s.io/component-base/version minor=${version#*.}
    mkdir -p "$cache/source"
    cd "$cache/source"
    [[ -s go.mod ]] || { write_module go.mod.new && mv go.mod.new go.mod; }
    CGO_ENABLED=0 GOFLAGS="-mod=mod -trimpath -buildvcs=false" go build -o "$2" -ldflags "-s -w \
        -X $about.gitVersion=v$version -X $about.gitMajor=1 -X $about.gitMinor=${minor%%.*}" "k8s.io/kubernetes/cmd/$1"
}

etcd_of_debian() {
    local folder=$cache/.etcd
    need apt-get etcd
    need dpkg-deb etcd
    rm -rf "$folder"
    mkdir -p "$folder/lists/partial" "$folder/archives/partial"
    cd "$folder"
    if ! apt-get -q download etcd-server >&2; then
        # The machine's own package lists are absent or old: fetch some, for this once.
        local own=(-o "Dir::State::lists=$folder/lists" -o "Dir::Cache=$folder" -o "Dir::Cache::archives=$folder/archives"
            -o APT::Sandbox::User=)
        apt-get -q "${own[@]}" update >&2
        apt-get -q "${own[@]}" download etcd-server >&2
    fi
    dpkg-deb --fsys-tarfile etcd-server_*.deb | tar -xO ./usr/bin/etcd >"$1"
    chmod +x "$1"
    rm -rf "$folder"
}

make() {
    local began=$SECONDS made=$cache/.new-$1
    say "making $1 …"
    case $1 in
        etcd) etcd_of_debian "$made" ;;
        pause) need go Kubernetes && (cd "$here/pause" && CGO_ENABLED=0 go build -trimpath -ldflags="-s -w" -o "$made" pause.go) ;;
        *) need go Kubernetes && from_kubernetes "$1" "$made" ;;
    esac
    mv "$made" "$cache/$1"
    say "$1: $((SECONDS - began)) s"
}

for program; do
    if [[ $program == etcd && ! -x $cache/etcd ]] && command -v etcd >/dev/null; then
        ln -sf "$(command -v etcd)" "$cache/etcd"
    fi
    if [[ ! -x $cache/$program ]]; then
        # One build at a time: a second one waits, and finds the work done.
        exec 9>"$cache/.lock"
        flock 9
        [[ -x $cache/$program ]] || make "$program"
        exec 9>&-
    fi
done
echo "$cache"
