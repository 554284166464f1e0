#!/bin/sh
# Starts sdtrainer.  Finds a Python that can make the project's .venv; sdtrainer/launcher.py does the rest.
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P) || exit 2

# 3 and 4 tell an unfit version and a missing ensurepip from names that do not run at all.
fitness='
import sys
if not (3, 11) <= sys.version_info[:2] <= (3, 14):
    sys.exit(3)
import importlib.util
if not importlib.util.find_spec("ensurepip"):
    sys.exit(4)
'
nearly=
# The finished .venv first: it is the quickest to answer.  3.14 late: packages come to the newest last.
for python in "$here/.venv/bin/python" python3.13 python3.12 python3.11 python3.14 python3 python; do
    "$python" -I -c "$fitness" 2>/dev/null
    case $? in
        0) exec "$python" -I "$here/sdtrainer/launcher.py" "$@" ;;
        4) nearly=${nearly:-$python} ;;
    esac
done

# This Python cannot be used either, but the launcher says in one sentence what it lacks.
[ -z "$nearly" ] || exec "$nearly" -I "$here/sdtrainer/launcher.py" "$@"
echo "sdtrainer: Install Python 3.11 to 3.14 from python.org or your system's packages: none was found." >&2
exit 2
