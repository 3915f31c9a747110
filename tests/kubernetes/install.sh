#!/bin/sh
# Installs what a real node is made of, from Debian's packages, for `make e2e-kubernetes`. Needs root. Starts no service.
set -eu
if [ "$(id -u)" != 0 ]; then
    echo "packages are installed by root: sudo $0" >&2
    exit 1
fi
# containerd's package would start it at once, unless this says no.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 1' INT TERM HUP
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
fi
apt-get -q update
apt-get -q install -y --no-install-recommends \
    containerd runc containernetworking-plugins iptables conntrack iproute2 procps util-linux buildah mmdebstrap
