"""Dassl's samplers by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dassl.data.datasets.base_dataset import Datum
from dassl.data.samplers.epochs import EpochSampler, RandomSampler, SequentialSampler
from dassl.data.samplers.groups import RandomClassSampler, RandomDomainSampler, SeqDomainSampler
from dassl.names import check_availability

__all__ = ["build_sampler"]


def build_sampler(
    sampler_type: str,
    cfg: Any = None,
    data_source: Sequence[Datum] = (),
    batch_size: int = 32,
    n_domain: int = 0,
    n_ins: int = 16,
) -> EpochSampler:
    """Build a sampler by name.

    Args:
        sampler_type: RandomSampler, SequentialSampler, RandomDomainSampler, SeqDomainSampler or
            RandomClassSampler.
        cfg: Unused; part of Dassl's signature.
        data_source: Images.
        batch_size: Images per batch; for the samplers by domain or class.
        n_domain: Domains per batch; for RandomDomainSampler.
        n_ins: Images per class in a batch; for RandomClassSampler.

    Raises:
        ValueError: Unknown name or unusable numbers.
    """
    # Functions: samplers that are not asked for would refuse these numbers.
    makers = {
        "RandomSampler": lambda: RandomSampler(data_source),
        "SequentialSampler": lambda: SequentialSampler(data_source),
        "RandomDomainSampler": lambda: RandomDomainSampler(data_source, batch_size, n_domain),
        "SeqDomainSampler": lambda: SeqDomainSampler(data_source, batch_size),
        "RandomClassSampler": lambda: RandomClassSampler(data_source, batch_size, n_ins),
    }
    check_availability(sampler_type, makers)
    return makers[sampler_type]()
