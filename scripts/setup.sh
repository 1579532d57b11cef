#!/usr/bin/env bash
# Make the project runnable: uses the active environment, else makes .venv here. Prints its python.
#   python=$(scripts/setup.sh)        # to run
#   python=$(scripts/setup.sh dev)    # to test, lint and type-check as well
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

requirements=requirements.txt
[ "${1:-}" = dev ] && requirements=requirements-dev.txt

if [ -n "${VIRTUAL_ENV:-}" ]; then
    python=$VIRTUAL_ENV/bin/python
    # /usr, as in Colab, may have it by this name only.
    [ -x "$python" ] || python=${python}3
elif [ -n "${CONDA_PREFIX:-}" ]; then
    python=$CONDA_PREFIX/bin/python
else
    python=$PWD/.venv/bin/python
    if [ ! -x "$python" ]; then
        system=${PYTHON:-python3}
        "$system" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
            echo "Python 3.10 or newer is needed; $("$system" --version 2>&1) was found." \
                 "Set PYTHON=/path/to/python3.x." >&2
            exit 1
        }
        echo "Making .venv" >&2
        "$system" -m venv .venv
    fi
fi

# Installed once per content of the requirements: later calls need no network.
environment=$("$python" -c 'import sys; print(sys.prefix)')
wanted=$(cat requirements.txt "$requirements" | cksum)
stamp=$environment/.installed-$requirements
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
    echo "Installing $requirements (PyTorch is large; this can take some minutes)" >&2
    "$python" -m pip install --quiet -r "$requirements" >&2
    echo "$wanted" > "$stamp"
fi
echo "$python"
