#!/bin/sh
# Known holes of what requirements.lock pins:  audit.sh PIP_AUDIT
# pip-audit exits 1 for a hole, and also, with a traceback, if it cannot ask; and it counts a package
# that the advisories do not know as sound, but for --strict.
set -u
errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
if found=$("$1" --requirement requirements.lock --no-deps --disable-pip --strict \
    --progress-spinner off 2> "$errors"); then
    echo "no known holes in requirements.lock"
elif [ -n "$found" ]; then
    printf '%s\n' "$found"
    exit 1
else
    echo "not audited, the advisories cannot be asked: $(tail -n 1 "$errors" | cut -c 1-300)" >&2
    exit 2
fi
