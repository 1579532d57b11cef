"""Train or evaluate one method on one dataset: CoOp's flags -> config -> trainer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import datasets  # noqa: F401 - registers the datasets
import trainers  # noqa: F401 - registers the methods
from dassl.data.feature_cache import FeatureCacheError
from dassl.engine import build_trainer
from dassl.engine.distributed import PeerLostError, WorldSizeError, is_main, process_group
from dassl.utils import set_random_seed, setup_logger
from trainers.config import argument_parser, build_config
from trainers.config_help import print_config_help
from trainers.finetuning_stages import FirstStageError
from trainers.predict import run_predict

USER_ERRORS = (ValueError, FileNotFoundError, ConnectionError)
# During a run, and no fault of it: the disk, a folder's permissions, the number of processes.
RUN_ERRORS = (FeatureCacheError, FirstStageError, WorldSizeError)


def main(argv: list[str] | None = None) -> None:
    """Run one job; see ``python train.py --help``.

    Raises:
        SystemExit: Something in the flags, the config, the data or a checkpoint cannot be used;
            with ``--debug`` the error itself. After ``--predict`` and ``--help-config``, their
            exit status.
    """
    args = argument_parser().parse_args(argv)
    if args.help_config is not None:
        sys.exit(print_config_help(args.help_config))
    if args.predict:
        with plainly(USER_ERRORS, args.debug):
            sys.exit(run_predict(args))
    with plainly(USER_ERRORS, args.debug):
        cfg = build_config(args)
    with plainly((PeerLostError, *RUN_ERRORS), args.debug), process_group(cfg):
        with plainly(USER_ERRORS, args.debug):
            if cfg.SEED >= 0:
                set_random_seed(cfg.SEED)
            setup_logger(cfg.OUTPUT_DIR if is_main() else None)
            trainer = build_trainer(cfg)
            if args.eval_only:
                trainer.load_model(args.model_dir, epoch=args.load_epoch)
        if args.eval_only:
            trainer.test()
        elif not args.no_train:
            trainer.train()


@contextmanager
def plainly(errors: tuple[type[Exception], ...], debug: bool) -> Iterator[None]:
    """End the program with an error's message alone, inside a block.

    Args:
        errors: Types of errors.
        debug: Let them through.

    Raises:
        SystemExit: One of them was raised.
    """
    try:
        yield
    except errors as error:
        if debug:
            raise
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
