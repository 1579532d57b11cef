#!/usr/bin/env bash
# Everything on a CUDA GPU, in at most eight minutes: tests, speed, memory, and a report of them.
#   bash scripts/gpu.sh [FOLDER]                       # gpu_report.json and .md; output/gpu if none is named
#   PYTHON=/path/to/python bash scripts/gpu.sh         # an environment that has the packages and pytest
# Exit status: 0 all ran and passed, 1 something failed or did not fit, 3 there is no CUDA GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Asked first: no need to install gigabytes to find out. Containers may lack nvidia-smi or the device files.
if [ -z "${PYTHON:-}" ] && [ ! -e /dev/nvidiactl ] && [ ! -e /dev/dxg ] && ! nvidia-smi -L > /dev/null 2>&1; then
    echo "no CUDA GPU: this machine shows none (no /dev/nvidiactl, and nvidia-smi finds nothing)" >&2
    exit 3
fi
python=${PYTHON:-$(scripts/setup.sh dev)}
exec "$python" scripts/gpu.py "$@"
