#!/usr/bin/env bash
# Base-to-novel generalisation: train on half of the classes, test on both halves, 3 seeds.
#   bash run_base2novel.sh                                         LightRA on every dataset
#   TRAINER="LightRA RAda" DATASETS="dtd eurosat" DEVICES="0 1" bash run_base2novel.sh --dry-run
# Variables: TRAINER CFG DATASETS SEEDS SHOTS DATA OUTPUT DEVICES LAUNCHER TRACK WARM PYTHON. Arguments go to scripts/run.py.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/run_protocol.sh"
run_protocol base2novel "$@"
