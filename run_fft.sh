#!/usr/bin/env bash
# Full fine-tuning: train on all images of one source, test on it and on its shifted siblings.
#   bash run_fft.sh                                       ImageNet as the source, RAda in its two stages
#   SOURCE=shapes TRAINER="ZeroshotCLIP2 LP FT LPFT RAdaFT" bash run_fft.sh --dry-run
# Variables: TRAINER CFG SOURCE TARGETS SEEDS SHOTS DATA OUTPUT DEVICES LAUNCHER TRACK WARM PYTHON. Arguments go to scripts/run.py.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/run_protocol.sh"
run_protocol fft "$@"
