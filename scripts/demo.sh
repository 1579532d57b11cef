#!/usr/bin/env bash
# Zero-shot CLIP against LightRA, base-to-novel on the bundled Shapes suite, 3 seeds. No download
# but the packages; about five minutes on two CPU cores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(scripts/setup.sh)
DATA=${DATA:-./data} OUTPUT=${OUTPUT:-./output}

run() { "$python" scripts/run.py --protocol base2novel --datasets shapes --root "$DATA" --output "$OUTPUT" "$@"; }
run --trainer ZeroshotCLIP --seeds 1 --no-report
run --trainer LightRA --seeds 1 2 3 --no-report
"$python" scripts/report.py --protocol base2novel --datasets shapes --output "$OUTPUT"
