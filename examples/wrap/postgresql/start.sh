#!/bin/sh
# Starts a database of its own on loopback, for trying: sh start.sh [FOLDER [PORT]]
# Its user shop gets the password that is in SHOP_DB_PASSWORD. PostgreSQL does not run as root.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
: "${SHOP_DB_PASSWORD:?choose a password: export SHOP_DB_PASSWORD=...}"
mkdir -p "${1:-data}"
folder=$(cd "${1:-data}" && pwd)
chmod 700 "$folder"
# Debian keeps all but the clients out of the way, one folder per version.
for bin in /usr/lib/postgresql/*/bin; do PATH=$bin:$PATH; done

# Its owner comes by a socket in the folder, all others with a password.
set -- -D "$folder/db" -p "${2:-5433}" -c listen_addresses=127.0.0.1 -c "unix_socket_directories=$folder"
if [ ! -e "$folder/ready" ]; then
    rm -rf "$folder/db"
    initdb -D "$folder/db" -U owner -E UTF8 --auth-local=trust --auth-host=scram-sha-256 >/dev/null
    postgres "$@" &
    trap 'kill $!' EXIT
    until pg_isready -q -h "$folder" -p "$4" -U owner -d postgres; do sleep 0.1; done
    psql -q -v ON_ERROR_STOP=1 -h "$folder" -p "$4" -U owner -d postgres <<'END'
\getenv password SHOP_DB_PASSWORD
create role shop login password :'password';
create database shop;
END
    psql -q -v ON_ERROR_STOP=1 -h "$folder" -p "$4" -U owner -d shop -f "$here/shop.sql"
    trap - EXIT
    kill $!
    wait $!
    touch "$folder/ready"
fi
exec postgres "$@"
