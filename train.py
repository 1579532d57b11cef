"""Train or evaluate one method on one dataset: CoOp's flags -> config -> trainer."""

from __future__ import annotations

import sys

import datasets  # noqa: F401 - registers the datasets
import trainers  # noqa: F401 - registers the methods
from dassl.data.feature_cache import FeatureCacheError
from dassl.engine import build_trainer
from dassl.utils import set_random_seed, setup_logger
from trainers.config import argument_parser, build_config

USER_ERRORS = (ValueError, FileNotFoundError, ConnectionError)


def main(argv: list[str] | None = None) -> None:
    """Run one job; see ``python train.py --help``.

    Raises:
        SystemExit: Something in the flags, the config, the data or a checkpoint cannot be used;
            with ``--debug`` the error itself.
    """
    args = argument_parser().parse_args(argv)
    try:
        cfg = build_config(args)
        if cfg.SEED >= 0:
            set_random_seed(cfg.SEED)
        setup_logger(cfg.OUTPUT_DIR)
        trainer = build_trainer(cfg)
        if args.eval_only:
            trainer.load_model(args.model_dir, epoch=args.load_epoch)
    except USER_ERRORS as error:
        if args.debug:
            raise
        sys.exit(f"error: {error}")
    try:
        if args.eval_only:
            trainer.test()
        elif not args.no_train:
            trainer.train()
    except FeatureCacheError as error:  # no fault of the run's: the disk, the folder's permissions
        if args.debug:
            raise
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
