"""One file per method; importing this package registers all of them."""

from trainers import lightra, zeroshot

__all__ = ["lightra", "zeroshot"]
