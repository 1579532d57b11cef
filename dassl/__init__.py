"""Slim training engine under Dassl's public names.

Trainers and dataset files written for Dassl.pytorch (https://github.com/KaiyangZhou/Dassl.pytorch),
as in the CoOp, MaPLe and PromptSRC repositories, import the same names from here. The code is our
own; only the interface and the behaviour that published numbers depend on are Dassl's.
"""

__version__ = "1.0.0"
