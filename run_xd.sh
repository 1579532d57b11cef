#!/usr/bin/env bash
# Cross-dataset transfer and domain generalisation: train on one source, test on other datasets.
#   bash run_xd.sh                                                 ImageNet as the source
#   SOURCE=shapes TARGETS="shapes_v2 shapes_forms" bash run_xd.sh --dry-run
# Variables: TRAINER CFG SOURCE TARGETS SEEDS SHOTS DATA OUTPUT DEVICES LAUNCHER TRACK WARM PYTHON. Arguments go to scripts/run.py.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/run_protocol.sh"
run_protocol cross_dataset "$@"
