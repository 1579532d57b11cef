"""Slim training engine under Dassl's public names.

Trainers and dataset files written for Dassl.pytorch (https://github.com/KaiyangZhou/Dassl.pytorch),
as in the CoOp, MaPLe and PromptSRC repositories, import the same names from here. The code is our
own; only the interface and the behaviour that published numbers depend on are Dassl's.
"""

import os

# PyTorch's threads wait for each other by spinning, which takes the cores from whatever else runs:
# with two other busy processes on two cores a step took three to seven times as long. Asleep they
# wait as well: on free cores no difference could be measured. Read when PyTorch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "1.0.0"
