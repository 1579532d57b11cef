#!/usr/bin/env bash
# Set up and run the tests; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(scripts/setup.sh dev)
# One thread per worker: two cores are shared by as many workers as there are cores.
export OMP_NUM_THREADS=1
if [ $# -gt 0 ]; then
    exec "$python" -m pytest -n auto --dist loadfile "$@"
fi
"$python" -m pytest -n auto --dist loadfile -m "not cluster"
# Last and alone: the daemons of engines need free cores to start and to answer in time.
exec "$python" -m pytest -m cluster -rs tests/cluster
