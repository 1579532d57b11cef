#!/usr/bin/env bash
# Few-shot learning: all classes, 1, 2, 4, 8 and 16 images each, 3 seeds.
#   bash run_few-shot.sh
#   TRAINER=RAda DATASETS=shapes SHOTS="1 16" DEVICES=cpu bash run_few-shot.sh
# Variables: TRAINER CFG DATASETS SEEDS SHOTS DATA OUTPUT DEVICES LAUNCHER TRACK WARM PYTHON. Arguments go to scripts/run.py.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/run_protocol.sh"
run_protocol few_shot "$@"
