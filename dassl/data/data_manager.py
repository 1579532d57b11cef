"""From the configuration to dataset, transforms and loaders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from yacs.config import CfgNode

from dassl.data.datasets import build_dataset
from dassl.data.datasets.base_dataset import Datum
from dassl.data.image_cache import ImageCache, build_image_cache
from dassl.data.jpeg_check import check_decoding
from dassl.data.jpegs import JpegDataset, collate_jpegs
from dassl.data.samplers import build_sampler
from dassl.data.samplers.epochs import mix_seed
from dassl.data.samplers.sharded import ShardedSampler
from dassl.data.transforms import INTERPOLATION_MODES, build_transform, crop_border_first
from dassl.data.wrapper import DatasetWrapper, ImageLoader, collate_good, read_image
from dassl.names import check_availability
from dassl.utils.distributed import local_size, rank, world_size

__all__ = [
    "INTERPOLATION_MODES",
    "DataManager",
    "DatasetWrapper",
    "build_data_loader",
    "read_image",
]


def build_data_loader(
    cfg: CfgNode,
    sampler_type: str = "SequentialSampler",
    data_source: Sequence[Datum] | None = None,
    batch_size: int = 64,
    n_domain: int = 0,
    n_ins: int = 2,
    tfm: Any = None,
    is_train: bool = True,
    dataset_wrapper: Any = None,
    cache: ImageCache | None = None,
    drop_last: bool = True,
) -> ImageLoader:
    """Build a loader whose batches do not depend on the number of workers.

    Each of several processes gets its share of the images, see `ShardedSampler`. On a GPU, a
    batch's images are there already, see `ImageLoader`.

    Args:
        cfg: Configuration.
        sampler_type: See `build_sampler`, also for ``n_domain`` and ``n_ins``.
        data_source: Images.
        batch_size: Images per batch.
        n_domain: Domains per batch.
        n_ins: Images per class in a batch.
        tfm: Transform.
        is_train: Whether the images are trained on.
        dataset_wrapper: Class to use instead of `DatasetWrapper`.
        cache: Keeps decoded images.
        drop_last: Of training images, drop the last short batch, if there is a full one.

    Raises:
        ValueError: No images, no full batch can be drawn, or workers may not open enough files.
    """
    if not data_source:
        raise ValueError("build_data_loader needs at least one image, data_source is empty")
    workers = _workers(cfg, batch_size)
    check_availability(cfg.INPUT.ON_BAD_IMAGE, ["error", "skip"])
    sampler: Any = build_sampler(sampler_type, cfg, data_source, batch_size, n_domain, n_ins)
    share = _own_share(sampler, batch_size, is_train, drop_last)
    device = _gpu(cfg)
    dataset = _wrapped(cfg, data_source, tfm, is_train, dataset_wrapper, device)
    loader = ImageLoader(
        _equipped(dataset, cache, device),
        # Rounded down: `check_world` of the engine refuses a remainder before training.
        batch_size=max(1, batch_size // world_size()) if is_train else batch_size,
        sampler=share,
        num_workers=workers,
        collate_fn=_collate(cfg, dataset),
        # With fewer images than a batch has, the only batch is a short one: keep it.
        drop_last=is_train and drop_last and len(data_source) >= batch_size,
        pin_memory=device is not None,
        persistent_workers=workers > 0,  # starting them again costs seconds in every epoch
        generator=_own_generator(),
    )
    if len(sampler) == 0 or (loader.drop_last and len(sampler) < batch_size):
        raise ValueError(
            f"{sampler_type} cannot fill a batch of {batch_size} from {len(data_source)} images"
        )
    return loader


def _wrapped(
    cfg: CfgNode,
    data_source: Sequence[Datum],
    tfm: Any,
    is_train: bool,
    wrapper: Any,
    device: torch.device | None,
) -> Any:
    """Return images with their transform; files where the GPU decodes (INPUT.DECODE)."""
    if is_train and cfg.INPUT.DECODE == "cuda":
        check_decoding(cfg, tfm, device, own_wrapper=wrapper is not None)
        wrapper = JpegDataset
    return (wrapper or DatasetWrapper)(cfg, data_source, transform=tfm, is_train=is_train)


def _collate(cfg: CfgNode, dataset: Any) -> Any:
    """Return what makes a batch of a dataset's items; None is PyTorch's way."""
    if isinstance(dataset, JpegDataset):
        return collate_jpegs
    return collate_good if cfg.INPUT.ON_BAD_IMAGE == "skip" else None


def _own_share(sampler: Any, batch_size: int, is_train: bool, drop_last: bool) -> Any:
    """Return what gives this process its images: the sampler, or a share of its batches."""
    processes = world_size()
    if processes == 1:
        return sampler
    if is_train and not drop_last:
        raise ValueError(
            "DATALOADER.TRAIN_X.DROP_LAST is False, but several processes cannot divide a short "
            "batch; set it to True, or start one process (without torchrun)"
        )
    return ShardedSampler(sampler, batch_size, rank(), processes, divide=is_train)


def _own_generator() -> torch.Generator:
    """Return a generator for a loader: otherwise starting workers would draw from the global."""
    generator = torch.Generator()
    generator.manual_seed(mix_seed(torch.initial_seed(), "loader"))
    return generator


def _equipped(dataset: Any, cache: ImageCache | None, device: torch.device | None) -> Any:
    """Give a dataset of ours the cache of images and the GPU that normalises them; return it."""
    if isinstance(dataset, DatasetWrapper):
        dataset.cache = cache
    # Another subclass may work on the floats itself.
    if type(dataset) in (DatasetWrapper, JpegDataset):
        dataset.device = device
    return dataset


def _gpu(cfg: CfgNode) -> torch.device | None:
    """Return the GPU that batches go to; without a number it is PyTorch's current one."""
    name = str(cfg.DEVICE)
    if not torch.cuda.is_available() or not cfg.USE_CUDA or name in ("cpu", "mps"):
        return None
    return torch.device("cuda" if name == "auto" else name)


def _workers(cfg: CfgNode, batch_size: int) -> int:
    """Return the number of worker processes, and allow them the open files that they need."""
    workers = cfg.DATALOADER.NUM_WORKERS
    if batch_size < 1 or workers < 0:
        raise ValueError(
            f"DATALOADER: BATCH_SIZE must be at least 1 (got {batch_size}) "
            f"and NUM_WORKERS at least 0 (got {workers})"
        )
    # More processes than cores would only wait for each other; the batches are the same.
    workers = min(workers, max(1, _cores() // local_size()))
    if workers > 0:
        _allow_open_files(workers)
    return workers


def _allow_open_files(workers: int) -> None:
    """Raise this process's limit on open files to what the workers need, if that is allowed.

    Every tensor that a worker hands over is an open file. A worker that reaches the limit loses its
    batch, and the run would wait forever for it.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    needed = 64 + 32 * workers
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed or soft == resource.RLIM_INFINITY:
        return
    if hard < needed and hard != resource.RLIM_INFINITY:
        raise ValueError(
            f"DATALOADER.NUM_WORKERS: {workers} workers need about {needed} open files, but this "
            f"process may have {hard} (ulimit -n); raise the limit, or set NUM_WORKERS 0"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _cores() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class DataManager:
    """Dataset and loaders of a run.

    Attributes:
        dataset: The dataset.
        train_loader_x: Loader of labelled training images; None for a dataset that is only tested
            on.
        train_loader_u: Loader of unlabelled training images, or None.
        val_loader: Loader of validation images, or None.
        test_loader: Loader of test images.
    """

    def __init__(
        self,
        cfg: CfgNode,
        custom_tfm_train: Any = None,
        custom_tfm_test: Any = None,
        dataset_wrapper: Any = None,
    ) -> None:
        """Build everything.

        Args:
            cfg: Configuration.
            custom_tfm_train: Training transform instead of the configured one.
            custom_tfm_test: Test transform instead of the configured one.
            dataset_wrapper: Class to use instead of `DatasetWrapper`.

        Raises:
            ValueError: Something in DATASET, INPUT or DATALOADER cannot be used.
        """
        self.dataset = build_dataset(cfg)
        if custom_tfm_train is None:
            self.tfm_train = build_transform(cfg, is_train=True)
        else:
            print("* Using custom transform for training")
            self.tfm_train = custom_tfm_train
        if custom_tfm_test is None:
            self.tfm_test = build_transform(cfg, is_train=False)
        else:
            print("* Using custom transform for testing")
            self.tfm_test = custom_tfm_test
        # ObjectNet's images have a red frame, which a model must not see.
        border = getattr(self.dataset, "border", 0)
        if border:
            print(f"* {border} pixels are cut off each side of every image first")
        self.tfm_train, self.tfm_test = (
            crop_border_first(tfm, border) for tfm in (self.tfm_train, self.tfm_test)
        )
        if cfg.INPUT.FAST_RESIZE:
            print("* INPUT.FAST_RESIZE: some pixels differ from Pillow's, by one level of 255")
        if cfg.INPUT.FAST_DECODE:
            print("* INPUT.FAST_DECODE: pixels of large JPEGs differ, they are decoded smaller")
        self._wrapper = dataset_wrapper
        self._build_loaders(cfg)
        if cfg.INPUT.DECODE == "cuda":
            print(
                "* INPUT.DECODE cuda: the GPU decodes training JPEGs, and pixels differ from "
                "Pillow's, which decodes the images to test on"
            )
        self._num_classes = self.dataset.num_classes
        self._num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        self._lab2cname = self.dataset.lab2cname
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    def _build_loaders(self, cfg: CfgNode) -> None:
        section_x = cfg.DATALOADER.TRAIN_X
        section_u = section_x if cfg.DATALOADER.TRAIN_U.SAME_AS_X else cfg.DATALOADER.TRAIN_U
        # For an empty split the loader is None, as trainers written for Dassl expect.
        data = self.dataset
        # Images to test on are left out: they are read once, or once an epoch at most.
        cache = build_image_cache(cfg, [*(data.train_x or ()), *(data.train_u or ())])
        train = self.tfm_train, True, cache
        self.train_loader_x = self._loader(cfg, data.train_x, section_x, *train)
        self.train_loader_u = self._loader(cfg, data.train_u, section_u, *train)
        self.val_loader = self._loader(cfg, data.val, cfg.DATALOADER.TEST, self.tfm_test, False)
        self.test_loader = self._loader(cfg, data.test, cfg.DATALOADER.TEST, self.tfm_test, False)

    def _loader(
        self,
        cfg: CfgNode,
        data_source: Sequence[Datum] | None,
        section: CfgNode,
        tfm: Any,
        is_train: bool,
        cache: ImageCache | None = None,
    ) -> ImageLoader | None:
        if not data_source:
            return None
        return build_data_loader(
            cfg,
            sampler_type=section.SAMPLER,
            data_source=data_source,
            batch_size=section.BATCH_SIZE,
            n_domain=section.get("N_DOMAIN", 0),
            n_ins=section.get("N_INS", 2),
            tfm=tfm,
            is_train=is_train,
            dataset_wrapper=self._wrapper,
            cache=cache,
            drop_last=section.get("DROP_LAST", True),
        )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self._num_classes

    @property
    def num_source_domains(self) -> int:
        """Number of source domains."""
        return self._num_source_domains

    @property
    def lab2cname(self) -> dict[int, str]:
        """Class name by label."""
        return self._lab2cname

    def bad_images(self) -> dict[str, str]:
        """Return all images skipped so far: the reason by path."""
        found: dict[str, str] = {}
        for name in ("train_loader_x", "train_loader_u", "val_loader", "test_loader"):
            found.update(getattr(getattr(self, name), "bad_images", {}))
        return found

    def show_dataset_summary(self, cfg: CfgNode) -> None:
        """Print the sizes of the dataset."""
        rows = [("Dataset", cfg.DATASET.NAME)]
        for title, domains in (
            ("Source", cfg.DATASET.SOURCE_DOMAINS),
            ("Target", cfg.DATASET.TARGET_DOMAINS),
        ):
            if domains:
                rows.append((title, ", ".join(domains)))
        rows.append(("# classes", f"{self.num_classes:,}"))
        for name in ("train_x", "train_u", "val", "test"):
            images = getattr(self.dataset, name)
            if images:
                rows.append((f"# {name}", f"{len(images):,}"))
        width = max(len(title) for title, _ in rows)
        rule = "-" * (width + 2 + max(len(value) for _, value in rows))
        print("\n".join([rule, *(f"{title:<{width}}  {value}" for title, value in rows), rule]))
