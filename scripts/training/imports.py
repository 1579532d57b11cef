"""All that a run of ``train.py`` imports, for a process that is forked for each run."""
# ruff: noqa: F401 - whoever imports this wants the modules loaded, not their names

import torch.utils.tensorboard

import datasets.shapes
import datasets.table
import scripts.training.config
import scripts.training.config_help
import scripts.training.flags
import scripts.training.predict
import trainers
