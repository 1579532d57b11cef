"""Mean and variance of the tokens in a vision tower, over a dataset's training images.

What PromptAlign (arXiv:2311.01459) aligns a test image's views with. The paper's are ImageNet's, a
download; :func:`run_statistics` makes them for any dataset and any trained MaPLe.

Notation: B blocks of the vision tower, L tokens, W width of the tower.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm
from yacs.config import CfgNode

from clip import adapter_parameters
from dassl.config import merge_options
from dassl.data import build_data_loader
from dassl.data.datasets import build_dataset
from dassl.data.features.key import hash_tensors
from dassl.data.transforms import build_transform, crop_border_first
from dassl.engine import read_result
from dassl.utils.distributed import gather_objects, is_main
from dassl.utils.torchtools import atomic_torch_save, load_checkpoint
from trainers.base import PromptedCLIP
from trainers.finetuning.stages import FirstStageError
from trainers.test_time.starts import FIRST_STAGE_KEY
from trainers.test_time.towers import block_inputs

KEY = "TRAINER.PromptAlign.STATISTICS"
FILE_NAME = "token_statistics.pt"
COMMAND = "python scripts/promptalign_statistics.py"
FORMAT = 2  # 1 had, in the slots of deep prompts, what the block before made of the last ones


@dataclass(frozen=True)
class TokenStatistics:
    """What vision blocks work on, their own prompts included, over many images.

    Attributes:
        mean: Per block, token and channel, (B, L, W).
        variance: The same, biased: divided by the number of images.
        images: How many.
        dataset: DATASET.NAME.
        model: :func:`model_hash` of what they were made with.
        format: Number of what the tensors mean; :data:`FORMAT` is what this code makes and uses.
    """

    mean: Tensor
    variance: Tensor
    images: int
    dataset: str
    model: str
    format: int = FORMAT

    def about(self) -> dict[str, Any]:
        """All but the tensors, for a result."""
        return {n: v for n, v in vars(self).items() if not isinstance(v, Tensor)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a PyTorch file, atomically."""
        atomic_torch_save(dict(vars(self)), path)


def model_hash(model: PromptedCLIP) -> str:
    """SHA-256 of everything that decides what vision blocks work on: tower and prompts."""
    tensors = {f"visual.{n}": p for n, p in model.backbone.model.visual.state_dict().items()}
    return hash_tensors({**tensors, **adapter_parameters(model.backbone)})


class Moments(NamedTuple):
    """Mean of some images' tokens, and the sum of squares around it.

    Attributes:
        images: How many.
        mean: Per block, token and channel, (B, L, W), in double precision.
        squares: The same, of the squared differences from the mean.
    """

    images: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, tokens: Tensor) -> Moments:
        """Those of a batch, (N, B, L, W)."""
        mean = tokens.mean(0)
        return cls(len(tokens), mean, (tokens - mean).square().sum(0))

    def merged(self, other: Moments) -> Moments:
        """Those of both sets of images, as by Chan et al.: no difference of large sums."""
        total = self.images + other.images
        shift = other.mean - self.mean
        squares = self.squares + other.squares
        squares = squares + shift.square() * (self.images * other.images / total)
        return Moments(total, self.mean + shift * (other.images / total), squares)

    def on_cpu(self) -> Moments:
        """The same in main memory."""
        return Moments(self.images, self.mean.cpu(), self.squares.cpu())


@torch.no_grad()
def token_statistics(
    model: PromptedCLIP, batches: Iterable[Tensor], dataset: str
) -> TokenStatistics:
    """Go through images once, prompts enabled; each of several processes through its share.

    Args:
        model: With prompts in its vision tower, in evaluation mode.
        batches: Images (N, 3, H, W), normalised.
        dataset: Their name.

    Raises:
        ValueError: There are no images.
    """
    backbone = model.backbone
    blocks = range(len(backbone.vision_transformer.resblocks))
    own: Moments | None = None
    for images in batches:
        with block_inputs(backbone, blocks) as found:
            backbone.encode_image(images)
        tokens = torch.stack([found[block] for block in blocks], 1)  # (N, B, L, W)
        tokens = (tokens.cpu() if tokens.device.type == "mps" else tokens).double()  # MPS has none
        moments = Moments.of(tokens)
        own = moments if own is None else own.merged(moments)
    # A process has none where there are fewer batches than processes.
    shares = [share for share in gather_objects(own and own.on_cpu()) if share is not None]
    if not shares:
        raise ValueError(f"{dataset} has no training images to take token statistics of")
    whole = reduce(Moments.merged, shares)
    mean, variance = whole.mean.float(), (whole.squares / whole.images).float()
    return TokenStatistics(mean, variance, whole.images, dataset, model_hash(model))


def training_batches(cfg: CfgNode, dataset: Any, device: torch.device) -> Iterator[Tensor]:
    """A dataset's training images, as they are tested.

    Args:
        cfg: Of the loader and the transform.
        dataset: As `dassl.data.datasets.build_dataset` makes it.
        device: Where to put them.

    Raises:
        ValueError: There are none.
    """
    if not dataset.train_x:
        raise ValueError(
            f"{cfg.DATASET.NAME} has no training images; token statistics need a dataset that can "
            "be trained on (--dataset-config-file)"
        )
    transform = build_transform(cfg, is_train=False)
    loader = build_data_loader(
        cfg,
        data_source=dataset.train_x,
        batch_size=cfg.DATALOADER.TEST.BATCH_SIZE,
        tfm=crop_border_first(transform, getattr(dataset, "border", 0)),
        is_train=False,
    )
    silent = None if is_main() else True
    for batch in tqdm(loader, desc="Token statistics", file=sys.stderr, disable=silent):
        yield batch["img"].to(device, non_blocking=True)


def run_statistics(
    model: PromptedCLIP,
    cfg: CfgNode,
    device: torch.device,
    directory: str | os.PathLike[str],
    path: Path,
) -> TokenStatistics:
    """Statistics of a run's prompts over all training images of its dataset, kept in a file.

    Args:
        model: With the run's prompts.
        cfg: Of the current run: how images are read, and the folder of all datasets.
        device: Where the model is.
        directory: The run's.
        path: File to write; if that is not allowed, nothing is kept.

    Raises:
        ValueError: The run does not say what it was trained on, or there are no images.
    """
    config = (read_result(directory) or {}).get("config")
    if not config:
        raise ValueError(
            f"{directory} has no complete result.json, which says what it was trained on; make its "
            f"token statistics with {COMMAND} --model-dir {directory} --dataset-config-file FILE"
        )
    root, cfg = cfg.DATASET.ROOT, cfg.clone()
    cfg.defrost()
    merge_options(cfg, ["DATASET", config["DATASET"]])
    cfg.DATASET.ROOT, cfg.DATASET.NUM_SHOTS = root, -1
    cfg.VERBOSE = False
    name = cfg.DATASET.NAME
    print(f'Token statistics over the training images of {name}, to be kept in "{path}"')
    batches = training_batches(cfg, build_dataset(cfg), device)
    found = token_statistics(model, batches, name)
    try:
        if is_main():
            found.save(path)
    except OSError as error:
        print(f"Token statistics are not kept: {error}")
    return found


def read_statistics(path: str | os.PathLike[str]) -> TokenStatistics:
    """Read what :meth:`TokenStatistics.save` wrote, in this format or an earlier one.

    Args:
        path: Of the file.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is another kind of file.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{KEY}: no file {path}; make it with {COMMAND}")
    content = load_checkpoint(path)
    names = TokenStatistics.__dataclass_fields__
    if isinstance(content, dict):
        content = {"format": 1, **content}  # did not say so
    if not isinstance(content, dict) or content.keys() != names.keys():
        raise ValueError(f"{KEY}: {path} holds no token statistics; make them with {COMMAND}")
    return TokenStatistics(**content)


def find_statistics(
    model: PromptedCLIP, cfg: CfgNode, device: torch.device, start: str, named: str
) -> TokenStatistics:
    """Read a model's statistics; where no file is named, make them if need be.

    Args:
        model: With trained prompts.
        cfg: See :func:`run_statistics`.
        device: Where the model is.
        start: Directory of the run that trained the prompts.
        named: File that the config names; "" for the one in ``start``.

    Raises:
        FileNotFoundError: The named file is not there.
        FirstStageError: The run does not say what it was trained on.
        ValueError: The named file is of another model, or of an earlier format.
    """
    path = Path(named or start, "" if named else FILE_NAME)
    found = _usable_statistics(model, start, path, named) if named or path.is_file() else None
    # All processes look before one of them writes the file, and all take part in making it.
    if all(gather_objects(found is not None)) and found is not None:
        return found
    try:
        return run_statistics(model, cfg, device, start, path)
    except ValueError as error:
        raise FirstStageError(f"{FIRST_STAGE_KEY}: {error}") from None


def _usable_statistics(
    model: PromptedCLIP, start: str, path: Path, named: str
) -> TokenStatistics | None:
    """Read a file of statistics; None if it is to be made again, which a named one is not."""
    found = read_statistics(path)
    if found.format != FORMAT:
        trouble = f"has token statistics of format {found.format}, not of {FORMAT}"
    elif found.model != model_hash(model):
        trouble = f"was made with another model (backbone or trained prompts) than {start}"
    else:
        return found
    if named:
        raise ValueError(f"{KEY}: {path} {trouble}; repeat {COMMAND}, or leave it empty")
    print(f'"{path}" {trouble}: they are made again')
    return None
