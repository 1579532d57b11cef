"""Train or evaluate one method on one dataset: CoOp's flags -> config -> trainer."""

from __future__ import annotations

import gc
import sys
from contextlib import nullcontext

from dassl.errors import plain_errors
from dassl.utils.logger import escape_unprintable
from scripts.training.parser import argument_parser


def main(argv: list[str] | None = None) -> None:
    """Run one job; see ``python train.py --help``.

    Errors in flags, config, data or a checkpoint end it with a plain message; ``--debug`` shows the
    traceback.
    """
    escape_unprintable()
    args = argument_parser().parse_args(argv)
    # Imported only now, so that --help need not wait seconds for PyTorch and the methods. Imports
    # leave no garbage, and looking for it takes a tenth of their time.
    gc.disable()
    import datasets.table  # noqa: F401 - registers the datasets
    import trainers  # noqa: F401 - registers the methods
    from dassl.engine import build_trainer
    from dassl.engine.distributed import PeerLostError, process_group
    from dassl.engine.run_folder import run_folder
    from dassl.tracking.tracking import closing_trackers
    from dassl.utils import set_random_seed, setup_logger
    from dassl.utils.distributed import is_main
    from dassl.utils.slurm import read_srun
    from scripts.training.config import build_config
    from scripts.training.config_help import print_config_help
    from scripts.training.flags import check_effect, check_flags
    from scripts.training.predict import run_predict

    gc.enable()
    with plain_errors(args.debug, also=(PeerLostError,)):
        if args.help_config is not None:
            sys.exit(print_config_help(args.help_config))
        check_flags(args)
        if args.predict:
            sys.exit(run_predict(args))
        if args.export:
            from scripts.exporting.export import run_export  # its tools take seconds to import

            sys.exit(run_export(args))
        read_srun()
        cfg = build_config(args)
        with process_group(cfg), run_folder(cfg.OUTPUT_DIR):
            if cfg.SEED >= 0:  # -1: the trainer draws one and records it
                set_random_seed(cfg.SEED)
            setup_logger(cfg.OUTPUT_DIR if is_main() else None)
            trainer = build_trainer(cfg)
            check_effect(args, trainer)
            with closing_trackers(trainer):
                if args.eval_only:
                    trainer.any_config = args.any_config
                    identity = getattr(trainer, "identity", None)
                    with identity.reading_weights() if identity is not None else nullcontext():
                        trainer.load_model(args.model_dir, epoch=args.load_epoch)
                    trainer.test()
                elif not args.no_train:
                    trainer.train()


if __name__ == "__main__":
    main(sys.argv[1:])
