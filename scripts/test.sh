#!/usr/bin/env bash
# Set up and run the tests; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(scripts/setup.sh dev)
# One thread per worker: two cores are shared by as many workers as there are cores.
OMP_NUM_THREADS=1 exec "$python" -m pytest -n auto --dist loadfile "$@"
