#!/bin/sh
# Installs what a real node is made of, from Debian's packages, for `make e2e-kubernetes`, unless all of it is here. Needs
# root. Starts no service.
set -eu
missing=
for name in containerd runc ctr iptables conntrack ip nsenter unshare sysctl buildah mmdebstrap; do
    command -v "$name" >/dev/null || missing="$missing $name"
done
[ -x /usr/lib/cni/bridge ] || missing="$missing /usr/lib/cni/bridge"
[ -n "$missing" ] || exit 0
echo "missing:$missing" >&2
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
