"""Every key of the configuration: its default, what is allowed, what it means.

Keys, meanings and defaults are Dassl's unless a meaning says "ours". A trainer adds its own section
under ``TRAINER`` before files are merged. Unknown keys are errors everywhere.
"""

from __future__ import annotations

from dataclasses import replace

from yacs.config import CfgNode as CN

from dassl.config.schema import (
    PATH,
    TEXT,
    Option,
    Rule,
    add_options,
    count,
    each,
    matching,
    names_of,
    number,
    one_of,
)
from dassl.tracking.available import TRACKERS

__all__ = ["OPTIONS", "TOGETHER", "get_cfg_default"]

_SHARE = number(0, 1)
# Written out: importing the samplers would import PyTorch, which a dry run does without.
_SAMPLER = one_of(
    "RandomSampler",
    "SequentialSampler",
    "RandomDomainSampler",
    "SeqDomainSampler",
    "RandomClassSampler",
)
_DEVICE = matching(r"auto|cpu|mps|cuda(:\d+)?", "auto, cpu, cuda, cuda:N or mps")
_MODEL = "a model's name, such as ViT-B/16, or the path of a checkpoint"
# A Gaussian kernel has a middle pixel.
_ODD = Rule("an odd number 1 to 999", lambda value: value in range(1, 1000, 2))
_RATIO = "three shares (train, val, test) that sum to 1, of which only val may be 0"

OPTIONS: dict[str, Option] = {
    "VERSION": Option(1, one_of(1), "of the configuration's form"),
    "OUTPUT_DIR": Option("./output", PATH, "weights, logs and results of the run"),
    "RESUME": Option("", PATH, "directory to resume from, other than OUTPUT_DIR"),
    "SEED": Option(-1, count(-1, 2**32 - 1), "-1 draws one and records it"),
    "USE_CUDA": Option(True, None, "take a GPU if there is one"),
    "DEVICE": Option("auto", _DEVICE, "what it runs on; ours"),
    "VERBOSE": Option(True, None, "print transforms, dataset summary and the like"),
    "TRACK": Option(
        ("tensorboard",),
        each(one_of(*TRACKERS)),
        "where scalars and results go; ours",
    ),
    "INPUT.SIZE": Option((224, 224), each(count(1, 4096), 2), "height, width in pixels"),
    "INPUT.INTERPOLATION": Option(
        "bilinear",
        names_of("dassl.data.transforms:INTERPOLATION_MODES"),
        "how images are resized",
    ),
    "INPUT.FAST_RESIZE": Option(
        False, None, "resize in about half the time; some pixels differ by a level; ours"
    ),
    "INPUT.FAST_DECODE": Option(
        False, None, "decode JPEGs of twice the size or more at half or less; pixels differ; ours"
    ),
    "INPUT.DECODE": Option(
        "pillow",
        one_of("pillow", "cuda"),
        "what decodes, crops and resizes training JPEGs; a GPU's pixels differ; ours",
    ),
    "INPUT.TRANSFORMS": Option(
        (),
        each(names_of("dassl.data.transforms.transforms:AVAILABLE_TRANSFORMS")),
        "what is done to training images",
    ),
    "INPUT.NO_TRANSFORM": Option(False, None, "give PIL images to the trainer"),
    "INPUT.PIXEL_MEAN": Option([0.485, 0.456, 0.406], each(_SHARE, 1, 3), "of each channel, 0-1"),
    "INPUT.PIXEL_STD": Option(
        [0.229, 0.224, 0.225], each(number(above=0, most=1), 1, 3), "of each channel, pixels in 0-1"
    ),
    "INPUT.CROP_PADDING": Option(4, count(0, 4096), "pixels around random_crop's images"),
    "INPUT.RRCROP_SCALE": Option(
        (0.08, 1.0),
        each(number(above=0, most=1), 2),
        "least and largest share of the area, random_resized_crop",
    ),
    "INPUT.CUTOUT_N": Option(1, count(0, 10_000), "squares of cutout"),
    "INPUT.CUTOUT_LEN": Option(16, count(1, 4096), "their side in pixels"),
    "INPUT.GN_MEAN": Option(0.0, None, "mean of gaussian_noise"),
    "INPUT.GN_STD": Option(0.15, number(0), "its deviation"),
    "INPUT.RANDAUGMENT_N": Option(2, count(0, 100), "operations of randaugment"),
    "INPUT.RANDAUGMENT_M": Option(10, count(0, 30), "their magnitude"),
    "INPUT.COLORJITTER_B": Option(0.4, number(0), "brightness of colorjitter"),
    "INPUT.COLORJITTER_C": Option(0.4, number(0), "its contrast"),
    "INPUT.COLORJITTER_S": Option(0.4, number(0), "its saturation"),
    "INPUT.COLORJITTER_H": Option(0.1, number(0, 0.5), "its hue"),
    "INPUT.RGS_P": Option(0.2, _SHARE, "probability of randomgrayscale"),
    "INPUT.GB_P": Option(0.5, _SHARE, "probability of gaussian_blur"),
    "INPUT.GB_K": Option(21, _ODD, "its kernel's size in pixels"),
    "INPUT.ON_BAD_IMAGE": Option(
        "error", one_of("error", "skip"), "if an image cannot be read; skip counts them; ours"
    ),
    "DATASET.ROOT": Option("", PATH, "folder of all datasets"),
    "DATASET.NAME": Option("", names_of("dassl.data.datasets:DATASET_REGISTRY"), "of the dataset"),
    "DATASET.SOURCE_DOMAINS": Option((), each(TEXT), "domains to train on"),
    "DATASET.TARGET_DOMAINS": Option((), each(TEXT), "domains to test on"),
    "DATASET.NUM_LABELED": Option(
        -1, count(1, also=(-1,)), "semi-supervised learning: labelled images in total"
    ),
    "DATASET.NUM_SHOTS": Option(-1, count(1, also=(-1,)), "images per class; -1 takes all"),
    # From here to ALL_AS_UNLABELED: read by Dassl's datasets, which users may add, not by ours.
    "DATASET.VAL_PERCENT": Option(0.1, number(0, below=1), "share of training images for val"),
    "DATASET.STL10_FOLD": Option(-1, count(-1, 9), "of STL-10; -1 takes all images"),
    "DATASET.CIFAR_C_TYPE": Option("", TEXT, "corruption of CIFAR-C"),
    "DATASET.CIFAR_C_LEVEL": Option(1, count(1, 5), "its strength"),
    "DATASET.ALL_AS_UNLABELED": Option(False, None, "labelled images are unlabelled ones too"),
    "DATASET.SUBSAMPLE_CLASSES": Option(
        "all", one_of("all", "base", "new"), "half of the classes; CoOp's train.py adds it"
    ),
    "DATASET.PROMPT_PATH": Option("", PATH, "JSON file {class name: [sentence, ...]}; ours"),
    "DATASET.PROMPT_TEMPLATE": Option("", TEXT, "replaces the dataset's own; ours"),
    "DATASET.PROMPT_SOURCE": Option(
        "auto", one_of("auto", "json", "template", "ensemble"), "where prompts come from; ours"
    ),
    "DATASET.PROMPT_ENSEMBLE": Option(
        7, one_of(7, 80), "number of open_clip's templates, for ensemble; ours"
    ),
    "DATASET.CLASSNAMES": Option("", PATH, "file with the user's class names; ours"),
    "DATASET.ALLOW_OWN_SPLIT": Option(
        False, None, "make a split when the published one is missing; ours"
    ),
    "DATASET.HASH_IMAGES": Option(
        False, None, "tell images of a large set (256 MiB) apart by content, not by size; ours"
    ),
    "DATASET.SPLIT_RATIO": Option(
        (0.5, 0.2, 0.3), each(_SHARE, 3), "train, val, test of such a split; ours"
    ),
    "DATALOADER.NUM_WORKERS": Option(4, count(0, 1024), "processes that load images"),
    "DATALOADER.CACHE_IMAGES": Option(
        2.0,
        number(0),
        "GiB of memory to keep training images decoded; 0 is off; ours",
    ),
    "DATALOADER.K_TRANSFORMS": Option(
        1, count(1, 1000), "times the transform is applied to each training image"
    ),
    "DATALOADER.RETURN_IMG0": Option(False, None, "also give the image unaugmented, as img0"),
    "DATALOADER.TRAIN_X.SAMPLER": Option("RandomSampler", _SAMPLER, "order of labelled images"),
    "DATALOADER.TRAIN_X.BATCH_SIZE": Option(32, count(1), "labelled images per step"),
    "DATALOADER.TRAIN_X.N_DOMAIN": Option(0, count(0), "domains per batch"),
    "DATALOADER.TRAIN_X.N_INS": Option(
        16, count(1), "images per class in a batch, RandomClassSampler"
    ),
    "DATALOADER.TRAIN_X.DROP_LAST": Option(
        True, None, "leave out an epoch's last batch if it is a short one; ours"
    ),
    "DATALOADER.TRAIN_U.SAME_AS_X": Option(True, None, "unlabelled images as TRAIN_X says"),
    "DATALOADER.TRAIN_U.SAMPLER": Option("RandomSampler", _SAMPLER, "order of unlabelled images"),
    "DATALOADER.TRAIN_U.BATCH_SIZE": Option(32, count(1), "unlabelled images per step"),
    "DATALOADER.TRAIN_U.N_DOMAIN": Option(0, count(0), "domains per batch"),
    "DATALOADER.TRAIN_U.N_INS": Option(
        16, count(1), "images per class in a batch, RandomClassSampler"
    ),
    "DATALOADER.TEST.SAMPLER": Option("SequentialSampler", _SAMPLER, "order of test images"),
    "DATALOADER.TEST.BATCH_SIZE": Option(32, count(1), "test images at a time"),
    "MODEL.INIT_WEIGHTS": Option("", PATH, "checkpoint to start from"),
    # A PATH, so that ~ is replaced in a checkpoint's path; no model's name begins with it.
    "MODEL.BACKBONE.NAME": Option("", replace(PATH, words=_MODEL), "pre-trained model"),
    "MODEL.BACKBONE.PRETRAINED": Option(True, None, "Dassl's; CLIP always is"),
    "MODEL.HEAD.NAME": Option("", TEXT, "of a head, for trainers that know it"),
    "MODEL.HEAD.HIDDEN_LAYERS": Option((), each(count(1)), "its hidden layers' widths"),
    "MODEL.HEAD.ACTIVATION": Option("relu", TEXT, "its activation"),
    "MODEL.HEAD.BN": Option(True, None, "it has batch norms"),
    "MODEL.HEAD.DROPOUT": Option(0.0, number(0, below=1), "its dropout"),
    "OPTIM.NAME": Option(
        "adam", names_of("dassl.optim.optimizer:AVAILABLE_OPTIMIZERS"), "optimiser"
    ),
    "OPTIM.LR": Option(0.0003, number(above=0, most=10_000), "learning rate before its schedule"),
    "OPTIM.WEIGHT_DECAY": Option(5e-4, number(0), "weight decay"),
    "OPTIM.MOMENTUM": Option(0.9, number(0, below=1), "of sgd and rmsprop"),
    "OPTIM.SGD_DAMPNING": Option(0, number(0, 1), "of sgd's momentum; Dassl's spelling"),
    "OPTIM.SGD_NESTEROV": Option(False, None, "Nesterov's momentum"),
    "OPTIM.RMSPROP_ALPHA": Option(0.99, number(0, below=1), "smoothing of rmsprop"),
    "OPTIM.ADAM_BETA1": Option(0.9, number(0, below=1), "beta 1 of all Adam variants"),
    "OPTIM.ADAM_BETA2": Option(0.999, number(0, below=1), "beta 2 of all Adam variants"),
    "OPTIM.STAGED_LR": Option(False, None, "other children than NEW_LAYERS get LR * BASE_LR_MULT"),
    "OPTIM.NEW_LAYERS": Option((), each(TEXT), "children that get LR, see STAGED_LR"),
    "OPTIM.BASE_LR_MULT": Option(0.1, number(0), "factor of LR, see STAGED_LR"),
    "OPTIM.LR_SCHEDULER": Option(
        "single_step",
        names_of("dassl.optim.lr_scheduler:AVAILABLE_SCHEDULERS"),
        "schedule of the learning rate; cosine_step is ours",
    ),
    "OPTIM.STEPSIZE": Option(
        (-1,), each(count(1, also=(-1,))), "epochs; -1 in single_step is MAX_EPOCH"
    ),
    "OPTIM.GAMMA": Option(0.1, number(above=0, most=1), "factor of the learning rate at a step"),
    "OPTIM.MAX_EPOCH": Option(10, count(0, 1_000_000), "epochs"),
    "OPTIM.WARMUP_EPOCH": Option(-1, count(-1, 1_000_000), "-1 or 0: no warm-up"),
    "OPTIM.WARMUP_TYPE": Option("linear", one_of("linear", "constant"), "of WARMUP_EPOCH"),
    "OPTIM.WARMUP_CONS_LR": Option(
        1e-5, number(above=0, most=10_000), "learning rate of constant warm-up"
    ),
    "OPTIM.WARMUP_MIN_LR": Option(1e-5, number(0, 10_000), "of the first epoch of linear warm-up"),
    "OPTIM.WARMUP_RECOUNT": Option(True, None, "the schedule begins after the warm-up"),
    "OPTIM.WARMUP_STEP": Option(
        0, count(0, 10_000_000), "linear warm-up steps of cosine_step; ours"
    ),
    "OPTIM.MAX_GRAD_NORM": Option(0.0, number(0), "clip the gradient's norm; 0 does not; ours"),
    # BATCH_SIZE stays the number of images per step, whatever the parts and processes.
    "OPTIM.ACCUMULATE": Option(
        1, count(1), "parts that a batch goes through the model in, before the one step; ours"
    ),
    "TRAIN.CHECKPOINT_FREQ": Option(
        0, count(0), "epochs between checkpoints that are kept; 0 keeps the last only"
    ),
    "TRAIN.PRINT_FREQ": Option(10, count(0), "batches between log lines and scalars; 0: none"),
    "TRAIN.COUNT_ITER": Option(
        "train_x",
        one_of("train_x", "train_u", "smaller_one"),
        "loader that an epoch follows, in TrainerXU",
    ),
    "TRAIN.RESUME_FREQ": Option(
        1, count(0), "epochs between rolling resume files; 0 writes none; ours"
    ),
    "TRAIN.GRAD_CHECKPOINTING": Option(
        False, None, "compute activations of transformers again in the backward pass; ours"
    ),
    "TRAIN.DETERMINISTIC": Option(
        False, None, "equal runs on one GPU give equal bits, more slowly; CPUs always do; ours"
    ),
    "TRAIN.KEPT_TOKENS": Option(
        16_384,
        count(0),
        "tokens of a step's texts whose activations are kept, the others' are computed again in "
        "the backward pass; 0 keeps all; ours",
    ),
    "TRAIN.TF32": Option(
        False, None, "products of fp32 on recent GPUs with factors of 11 bits, faster; ours"
    ),
    "TRAIN.COMPILE": Option(False, None, "compile blocks of the towers and the mask; ours"),
    "TRAIN.CUDA_GRAPHS": Option(
        False, None, "on CUDA, start all kernels of a small step at once (RAda, RAdaTTT); ours"
    ),
    "TRAIN.TIMEOUT": Option(
        1800, count(1, 31_536_000), "seconds that processes wait for each other, torchrun; ours"
    ),
    "TEST.EVALUATOR": Option(
        "Classification", names_of("dassl.evaluation:EVALUATOR_REGISTRY"), "what tests"
    ),
    "TEST.PER_CLASS_RESULT": Option(False, None, "print accuracy per class"),
    "TEST.COMPUTE_CMAT": Option(False, None, "save the confusion matrix"),
    "TEST.SAVE_PREDICTIONS": Option(
        True, None, "keep in predictions.csv.gz what each test image was taken for; ours"
    ),
    "TEST.NO_TEST": Option(False, None, "do not test after training"),
    "TEST.SPLIT": Option("test", one_of("test", "val"), "images to test on"),
    "TEST.FINAL_MODEL": Option(
        "last_step", one_of("last_step", "best_val"), "weights to test after training"
    ),
    "TEST.ZERO_SHOT_CHECK": Option(
        "shifts",
        one_of("shifts", "all", "none"),
        "datasets on which zero-shot accuracy is checked first, on 500 images; ours",
    ),
    "VAL.POLICY": Option(
        "min4",
        one_of("none", "min4", "shots", "full", "released"),
        "validation images of a few-shot run: min(shots, 4) of each class as CoOp, as many as "
        "shots, all; none and released (test images) are for methods that choose numbers; ours",
    ),
    "TRAINER.NAME": Option("", names_of("dassl.engine:TRAINER_REGISTRY"), "of the method"),
}


def get_cfg_default() -> CN:
    """Return a fresh configuration with all defaults."""
    cfg = CN()
    add_options(cfg, OPTIONS)
    return cfg


def _crop_scale(cfg: CN) -> str:
    scale = cfg.INPUT.RRCROP_SCALE
    if scale[0] <= scale[1]:
        return ""
    return f"INPUT.RRCROP_SCALE must be the least share, then the largest, got {scale!r}"


def _split_ratio(cfg: CN) -> str:
    ratio = cfg.DATASET.SPLIT_RATIO
    if abs(sum(ratio) - 1) < 1e-6 and ratio[0] > 0 and ratio[2] > 0:
        return ""
    return f"DATASET.SPLIT_RATIO must be {_RATIO}, such as (0.5, 0.2, 0.3), got {tuple(ratio)!r}"


def _warm_up(cfg: CN) -> str:
    optim = cfg.OPTIM
    # cosine_step counts its warm-up in steps, WARMUP_STEP.
    if optim.LR_SCHEDULER == "cosine_step" or optim.WARMUP_EPOCH <= max(1, optim.MAX_EPOCH):
        return ""
    return (
        f"OPTIM.WARMUP_EPOCH must be at most OPTIM.MAX_EPOCH ({optim.MAX_EPOCH}), so that the "
        f"learning rate gets to OPTIM.LR, got {optim.WARMUP_EPOCH}"
    )


def _milestones(cfg: CN) -> str:
    steps, schedule = cfg.OPTIM.STEPSIZE, cfg.OPTIM.LR_SCHEDULER
    steps = steps if isinstance(steps, list | tuple) else (steps,)
    wrong = {
        "single_step": not steps,
        "multi_step": any(b <= a for a, b in zip((0, *steps), steps, strict=False)),
    }
    if not wrong.get(schedule, False):
        return ""
    words = {"single_step": "one number of epochs", "multi_step": "epochs above 0 that increase"}
    return f"OPTIM.STEPSIZE must be {words[schedule]} for {schedule}, got {steps!r}"


def _nesterov(cfg: CN) -> str:
    optim = cfg.OPTIM
    # PyTorch's SGD has the same rule, but its error does not name our keys.
    fits = optim.MOMENTUM > 0 and optim.SGD_DAMPNING == 0
    if optim.NAME != "sgd" or not optim.SGD_NESTEROV or fits:
        return ""
    return (
        "OPTIM.SGD_NESTEROV must be False unless OPTIM.MOMENTUM is above 0 and OPTIM.SGD_DAMPNING "
        f"0, got {optim.MOMENTUM} and {optim.SGD_DAMPNING}"
    )


# Rules about several keys, checked once each of them holds by itself.
TOGETHER = (_crop_scale, _split_ratio, _warm_up, _milestones, _nesterov)
