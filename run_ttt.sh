#!/usr/bin/env bash
# Test-time training: adapt to each unlabelled test image of a source's shifted siblings.
#   bash run_ttt.sh                                       RAda on the shifts of ImageNet
#   SOURCE=shapes TRAINER="ZeroshotCLIP RAdaTTT TPT" bash run_ttt.sh --dry-run
# Variables: TRAINER CFG SOURCE TARGETS SEEDS SHOTS DATA OUTPUT DEVICES LAUNCHER TRACK WARM PYTHON. Arguments go to scripts/run.py.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/run_protocol.sh"
run_protocol ttt "$@"
