"""The configuration: defaults, merging, hashing."""

from dassl.config.defaults import get_cfg_default
from dassl.config.layers import Layer, overlay, read_layers
from dassl.config.merge import clean_cfg, config_hash, merge_file, merge_options, to_plain
from dassl.config.paths import user_path

__all__ = [
    "Layer",
    "clean_cfg",
    "config_hash",
    "get_cfg_default",
    "merge_file",
    "merge_options",
    "overlay",
    "read_layers",
    "to_plain",
    "user_path",
]
