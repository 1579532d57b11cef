"""Helpers under the names that Dassl's ``dassl.utils`` has."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dassl.names import check_availability, nearest
from dassl.utils.files import (
    atomic_write,
    check_isfile,
    listdir_nohidden,
    mkdir_if_missing,
    read_json,
    write_json,
)
from dassl.utils.logger import Logger, setup_logger
from dassl.utils.meters import AverageMeter, MetricMeter
from dassl.utils.registry import Registry
from dassl.utils.tools import (
    collect_env_info,
    download_url,
    get_most_similar_str_to_a_from_b,
    git_revision,
    package_versions,
    read_image,
    set_random_seed,
    tolist_if_not,
)

if TYPE_CHECKING:
    from dassl.utils.torchtools import (
        atomic_torch_save,
        count_num_param,
        init_network_weights,
        load_checkpoint,
        load_pretrained_weights,
        open_all_layers,
        open_specified_layers,
        resume_from_checkpoint,
        save_checkpoint,
    )

__all__ = [
    "AverageMeter",
    "Logger",
    "MetricMeter",
    "Registry",
    "atomic_torch_save",
    "atomic_write",
    "check_availability",
    "check_isfile",
    "collect_env_info",
    "count_num_param",
    "download_url",
    "get_most_similar_str_to_a_from_b",
    "git_revision",
    "init_network_weights",
    "listdir_nohidden",
    "load_checkpoint",
    "load_pretrained_weights",
    "mkdir_if_missing",
    "nearest",
    "open_all_layers",
    "open_specified_layers",
    "package_versions",
    "read_image",
    "read_json",
    "resume_from_checkpoint",
    "save_checkpoint",
    "set_random_seed",
    "setup_logger",
    "tolist_if_not",
    "write_json",
]


def __getattr__(name: str) -> Any:
    # PyTorch takes seconds to import, and most programs here only read or write files.
    if name in __all__:
        return getattr(import_module("dassl.utils.torchtools"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
