"""One file per method; importing this package registers all of them."""

from trainers import lightra, lightrada, rada, rada_adapter, rada_prompt, zeroshot

__all__ = ["lightra", "lightrada", "rada", "rada_adapter", "rada_prompt", "zeroshot"]
