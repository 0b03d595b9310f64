#!/bin/sh
# Starts a name server of its own on loopback, for trying: sh start.sh [FOLDER [API-PORT [DNS-PORT]]]
# Its API wants the key that is in PDNS_KEY.
set -eu

folder=${1:-data}
: "${PDNS_KEY:?choose a key: export PDNS_KEY=...}"
umask 077
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
[ -e "$folder/zones.db" ] ||
    sqlite3 "$folder/zones.db" </usr/share/pdns-backend-sqlite3/schema/schema.sqlite3.sql
cat >"$folder/pdns.conf" <<END
launch=gsqlite3
gsqlite3-database=$folder/zones.db
socket-dir=$folder
local-address=127.0.0.1
local-port=${3:-5300}
webserver-address=127.0.0.1
webserver-port=${2:-8081}
api=yes
api-key=$PDNS_KEY
security-poll-suffix=
disable-syslog=yes
END
exec /usr/sbin/pdns_server --config-dir="$folder" --guardian=no --daemon=no
