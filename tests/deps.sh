#!/bin/sh
# Installs the servers, clients and compilers that the integration tests drive (make test-deps), or
# the packages that it is given (make bench-deps).
# No service is started, and a second run is quick and changes nothing.
set -eu

packages="prosody ejabberd profanity go-sendxmpp libstrophe-dev libjansson-dev gcc libc6-dev pkg-config tmux postgresql strace units bc imagemagick memcached systemd perl redis-server busybox pdns-server pdns-backend-sqlite3 sqlite3 mariadb-server bubblewrap mmdebstrap systemd-container"
command -v node >/dev/null 2>&1 || packages="$packages nodejs npm"
command -v docker >/dev/null 2>&1 || packages="$packages docker.io"
[ $# -eq 0 ] || packages="$*"

if ! command -v dpkg-query >/dev/null 2>&1 || ! command -v apt-get >/dev/null 2>&1; then
    echo "deps: needs Debian or Ubuntu; elsewhere install by hand: $packages" >&2
    exit 1
fi

missing=
for package in $packages; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) || status=
    [ "$status" = installed ] || missing="$missing $package"
done
if [ -z "$missing" ]; then
    echo "deps: everything is there"
    exit 0
fi

if [ "$(id -u)" -eq 0 ]; then
    as_root=
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    as_root=sudo
else
    echo "deps: run it as root or where sudo asks for no password; missing:$missing" >&2
    exit 1
fi

# Packages start their daemons unless this file forbids it (invoke-rc.d(8)): exit 101.
policy=/usr/sbin/policy-rc.d
ours=
cleanup() {
    [ -z "$ours" ] || $as_root rm -f "$policy"
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
if [ ! -e "$policy" ]; then
    ours=yes
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
fi

echo "deps: installing$missing"
$as_root apt-get update -qq
# shellcheck disable=SC2086  # a list of words
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    -o Dpkg::Use-Pty=0 $missing

# Only what was just installed: a daemon that was there before is somebody's.
for daemon in prosody ejabberd postgresql redis-server nats-server memcached pdns-server mariadb-server; do
    case " $missing " in *" $daemon "*) ;; *) continue ;; esac
    # These two are services of a shorter name.
    case $daemon in pdns-server | mariadb-server) daemon=${daemon%-server} ;; esac
    if [ -d /run/systemd/system ]; then
        $as_root systemctl disable --quiet --now "$daemon" 2>/dev/null || :
    elif [ -x "/etc/init.d/$daemon" ]; then
        $as_root "/etc/init.d/$daemon" stop >/dev/null 2>&1 || :
    fi
done
# Debian's ejabberd starts Erlang's port mapper for its set-up and leaves it behind.
case " $missing " in
*" ejabberd "*) command -v epmd >/dev/null 2>&1 && epmd -kill >/dev/null 2>&1 || : ;;
esac
echo "deps: done"
