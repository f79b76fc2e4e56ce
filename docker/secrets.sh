#!/usr/bin/env sh
# Makes the two secrets of compose.yaml, once. They stay on this machine (git ignores the folder).
set -eu
cd "$(dirname "$0")"
mkdir -p secrets
umask 077
for name in postgres_password ray_token; do
    [ -s "secrets/$name" ] || python3 -c 'import secrets; print(secrets.token_hex(32), end="")' >"secrets/$name"
done
# The containers' user (uid 10001) must be able to read them.
chmod 0444 secrets/*
