"""Every key of the configuration with its default.

Keys, meanings and defaults are Dassl's unless a comment says "ours". A trainer adds its own section
under ``TRAINER`` before files are merged. Unknown keys are errors everywhere.
"""

from yacs.config import CfgNode as CN

__all__ = ["get_cfg_default"]

_C = CN()
_C.VERSION = 1
_C.OUTPUT_DIR = "./output"  # weights, logs and results of the run
_C.RESUME = ""  # directory to resume from, other than OUTPUT_DIR
_C.SEED = -1  # -1 draws one, logs it and records it; 0 is a seed like any other
_C.USE_CUDA = True
_C.DEVICE = "auto"  # ours: auto | cpu | cuda | cuda:N | mps
_C.VERBOSE = True  # print transforms, data set summary and the like

_C.INPUT = CN()
_C.INPUT.SIZE = (224, 224)  # height, width
_C.INPUT.INTERPOLATION = "bilinear"
_C.INPUT.TRANSFORMS = ()  # names, see dassl.data.transforms
_C.INPUT.NO_TRANSFORM = False  # give PIL images to the trainer
_C.INPUT.PIXEL_MEAN = [0.485, 0.456, 0.406]
_C.INPUT.PIXEL_STD = [0.229, 0.224, 0.225]
_C.INPUT.CROP_PADDING = 4  # random_crop
_C.INPUT.RRCROP_SCALE = (0.08, 1.0)  # random_resized_crop
_C.INPUT.CUTOUT_N = 1
_C.INPUT.CUTOUT_LEN = 16
_C.INPUT.GN_MEAN = 0.0  # gaussian_noise
_C.INPUT.GN_STD = 0.15
_C.INPUT.RANDAUGMENT_N = 2
_C.INPUT.RANDAUGMENT_M = 10
_C.INPUT.COLORJITTER_B = 0.4
_C.INPUT.COLORJITTER_C = 0.4
_C.INPUT.COLORJITTER_S = 0.4
_C.INPUT.COLORJITTER_H = 0.1
_C.INPUT.RGS_P = 0.2  # probability of randomgrayscale
_C.INPUT.GB_P = 0.5  # probability and kernel size of gaussian_blur
_C.INPUT.GB_K = 21
_C.INPUT.ON_BAD_IMAGE = "error"  # ours: error | skip (counted and reported)

_C.DATASET = CN()
_C.DATASET.ROOT = ""
_C.DATASET.NAME = ""
_C.DATASET.SOURCE_DOMAINS = ()
_C.DATASET.TARGET_DOMAINS = ()
_C.DATASET.NUM_LABELED = -1  # semi-supervised learning: labelled images in total
_C.DATASET.NUM_SHOTS = -1  # images per class; -1 takes all, 0 is refused
_C.DATASET.VAL_PERCENT = 0.1
_C.DATASET.STL10_FOLD = -1
_C.DATASET.CIFAR_C_TYPE = ""
_C.DATASET.CIFAR_C_LEVEL = 1
_C.DATASET.ALL_AS_UNLABELED = False
_C.DATASET.SUBSAMPLE_CLASSES = "all"  # all | base | new; CoOp's train.py adds it
_C.DATASET.PROMPT_PATH = ""  # ours: JSON file {class name: [sentence, ...]}
_C.DATASET.PROMPT_TEMPLATE = ""  # ours: replaces the data set's own template
_C.DATASET.PROMPT_SOURCE = "auto"  # ours: auto | json | template | ensemble
_C.DATASET.PROMPT_ENSEMBLE = 7  # ours: open_clip's 7 or 80 templates, for ensemble
_C.DATASET.CLASSNAMES = ""  # ours: file with the user's class names
_C.DATASET.ALLOW_OWN_SPLIT = False  # ours: make a split when the published one is missing
# ours: tell the images of a large set (256 MiB) apart by content too, not by size and times
_C.DATASET.HASH_IMAGES = False
_C.DATASET.SPLIT_RATIO = (0.5, 0.2, 0.3)  # ours: train, val, test of such a split

_C.DATALOADER = CN()
_C.DATALOADER.NUM_WORKERS = 4
_C.DATALOADER.K_TRANSFORMS = 1  # times the transform is applied to each training image
_C.DATALOADER.RETURN_IMG0 = False  # also give the image without augmentation, as img0
_C.DATALOADER.TRAIN_X = CN()
_C.DATALOADER.TRAIN_X.SAMPLER = "RandomSampler"
_C.DATALOADER.TRAIN_X.BATCH_SIZE = 32
_C.DATALOADER.TRAIN_X.N_DOMAIN = 0  # domains per batch
_C.DATALOADER.TRAIN_X.N_INS = 16  # images per class in a batch, RandomClassSampler
_C.DATALOADER.TRAIN_U = CN()
_C.DATALOADER.TRAIN_U.SAME_AS_X = True
_C.DATALOADER.TRAIN_U.SAMPLER = "RandomSampler"
_C.DATALOADER.TRAIN_U.BATCH_SIZE = 32
_C.DATALOADER.TRAIN_U.N_DOMAIN = 0
_C.DATALOADER.TRAIN_U.N_INS = 16
_C.DATALOADER.TEST = CN()
_C.DATALOADER.TEST.SAMPLER = "SequentialSampler"
_C.DATALOADER.TEST.BATCH_SIZE = 32

_C.MODEL = CN()
_C.MODEL.INIT_WEIGHTS = ""
_C.MODEL.BACKBONE = CN()
_C.MODEL.BACKBONE.NAME = ""
_C.MODEL.BACKBONE.PRETRAINED = True
_C.MODEL.HEAD = CN()
_C.MODEL.HEAD.NAME = ""
_C.MODEL.HEAD.HIDDEN_LAYERS = ()
_C.MODEL.HEAD.ACTIVATION = "relu"
_C.MODEL.HEAD.BN = True
_C.MODEL.HEAD.DROPOUT = 0.0

_C.OPTIM = CN()
_C.OPTIM.NAME = "adam"  # adam | amsgrad | sgd | rmsprop | radam | adamw
_C.OPTIM.LR = 0.0003
_C.OPTIM.WEIGHT_DECAY = 5e-4
_C.OPTIM.MOMENTUM = 0.9
_C.OPTIM.SGD_DAMPNING = 0  # Dassl's spelling
_C.OPTIM.SGD_NESTEROV = False
_C.OPTIM.RMSPROP_ALPHA = 0.99
_C.OPTIM.ADAM_BETA1 = 0.9  # beta 1 and 2 of all Adam variants
_C.OPTIM.ADAM_BETA2 = 0.999
_C.OPTIM.STAGED_LR = False  # other children than NEW_LAYERS get LR * BASE_LR_MULT
_C.OPTIM.NEW_LAYERS = ()
_C.OPTIM.BASE_LR_MULT = 0.1
_C.OPTIM.LR_SCHEDULER = "single_step"  # single_step | multi_step | cosine | cosine_step (ours)
_C.OPTIM.STEPSIZE = (-1,)  # epochs; -1 in single_step is MAX_EPOCH
_C.OPTIM.GAMMA = 0.1
_C.OPTIM.MAX_EPOCH = 10
_C.OPTIM.WARMUP_EPOCH = -1  # -1 or 0: no warm-up
_C.OPTIM.WARMUP_TYPE = "linear"  # linear | constant
_C.OPTIM.WARMUP_CONS_LR = 1e-5  # constant warm-up
_C.OPTIM.WARMUP_MIN_LR = 1e-5  # first epoch of linear warm-up
_C.OPTIM.WARMUP_RECOUNT = True  # the schedule starts from its beginning after the warm-up
_C.OPTIM.WARMUP_STEP = 0  # ours: linear warm-up steps of cosine_step
_C.OPTIM.MAX_GRAD_NORM = 0.0  # ours: clip the gradient's norm; 0 does not
# ours: parts that a batch goes through the model in, one after another, before the one step. Saves
# memory; BATCH_SIZE stays the number of images per step, whatever the parts and processes.
_C.OPTIM.ACCUMULATE = 1

_C.TRAIN = CN()
_C.TRAIN.CHECKPOINT_FREQ = 0  # epochs between checkpoints that are kept; 0 keeps the last only
_C.TRAIN.PRINT_FREQ = 10  # batches between log lines
_C.TRAIN.COUNT_ITER = "train_x"  # train_x | train_u | smaller_one; only train_x has a meaning here
_C.TRAIN.RESUME_FREQ = 1  # ours: epochs between rolling resume files; 0 writes none
# ours: compute activations of open_clip's transformers again in the backward pass, not keep them
_C.TRAIN.GRAD_CHECKPOINTING = False
_C.TRAIN.TIMEOUT = 1800  # ours: seconds that processes wait for each other, under torchrun

_C.TEST = CN()
_C.TEST.EVALUATOR = "Classification"
_C.TEST.PER_CLASS_RESULT = False  # print accuracy per class
_C.TEST.COMPUTE_CMAT = False  # save the confusion matrix
_C.TEST.NO_TEST = False  # do not test after training
_C.TEST.SPLIT = "test"  # test | val
_C.TEST.FINAL_MODEL = "last_step"  # last_step | best_val
# ours: shifts | all | none: on which data sets zero-shot accuracy is checked first (500 images)
_C.TEST.ZERO_SHOT_CHECK = "shifts"

_C.TRAINER = CN()
_C.TRAINER.NAME = ""


def get_cfg_default() -> CN:
    """Return a fresh configuration with all defaults."""
    return _C.clone()
