"""One file per method; importing this package registers all of them."""

from trainers import (
    clip_adapter,
    cocoop,
    coop,
    coprompt,
    dept,
    hpt,
    ivlp,
    kgcoop,
    lightra,
    lightrada,
    maple,
    mma,
    prograd,
    promptsrc,
    provp,
    rada,
    rada_adapter,
    rada_prompt,
    vpt,
    zeroshot,
)
from trainers.finetuning import clip_adapter_ft as finetuning_adapter
from trainers.finetuning import flyp as finetuning_flyp
from trainers.finetuning import ft as finetuning
from trainers.finetuning import rada_ft as finetuning_rada
from trainers.finetuning import wise_ft as finetuning_wise
from trainers.test_time import promptalign, tpt
from trainers.test_time import rada_ttt as ttt_rada

__all__ = [
    "clip_adapter",
    "cocoop",
    "coop",
    "coprompt",
    "dept",
    "finetuning",
    "finetuning_adapter",
    "finetuning_flyp",
    "finetuning_rada",
    "finetuning_wise",
    "hpt",
    "ivlp",
    "kgcoop",
    "lightra",
    "lightrada",
    "maple",
    "mma",
    "prograd",
    "promptalign",
    "promptsrc",
    "provp",
    "rada",
    "rada_adapter",
    "rada_prompt",
    "tpt",
    "ttt_rada",
    "vpt",
    "zeroshot",
]
