"""Samplers under Dassl's names, one idea per file: whole epochs, groups, a process's share."""

from dassl.data.samplers.build import build_sampler
from dassl.data.samplers.epochs import RandomSampler, SequentialSampler
from dassl.data.samplers.groups import RandomClassSampler, RandomDomainSampler, SeqDomainSampler

__all__ = [
    "RandomClassSampler",
    "RandomDomainSampler",
    "RandomSampler",
    "SeqDomainSampler",
    "SequentialSampler",
    "build_sampler",
]
