#!/usr/bin/env bash
# RAda's efficient fine-tuning: base-to-novel on frozen encoders, 3 seeds.
#   bash run_eft.sh                                                RAda on every dataset
#   TRAINER="RAda RAdaAdapter" DATASETS="dtd eurosat" DEVICES="0 1" bash run_eft.sh --dry-run
# Variables: TRAINER CFG DATASETS SEEDS SHOTS DATA OUTPUT DEVICES LAUNCHER TRACK WARM PYTHON. Arguments go to scripts/run.py.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/run_protocol.sh"
run_protocol eft "$@"
