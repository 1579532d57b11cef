"""Pictures per second: this project's loader beside torchvision's ImageFolder, on the same files.

    python scripts/bench.py loading [--workers 0 2] [--pictures 1000] [--side 224] [--rounds 3]
    python scripts/bench.py loading --decode cuda      # on a machine with a GPU

Both read JPEG files and apply the same training transform (random resized crop, flip,
normalisation; torchvision's as its users write it) in batches of 32, to small pictures and to such
of a photograph's usual size. Ours also seeds every picture separately, so that what is loaded does
not depend on the number of workers. "Ours" decodes in every epoch, "cached" keeps decoded pictures
(DATALOADER.CACHE_IMAGES), "bytes" does and leaves normalisation to a GPU, which is not part of the
time, and "fast resize" does all that with INPUT.FAST_RESIZE. With ``--decode cuda`` there is one
more, "decode cuda": the GPU decodes, crops, resizes and normalises (INPUT.DECODE), and is waited
for. The first epoch does not count. Every measurement has a process of its own, and the loaders
take turns. A second table has the milliseconds that one photograph costs, step by step, and a line
says how much faster a loader can be that has Pillow resize.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader
from tqdm import tqdm
from yacs.config import CfgNode

from dassl.data.image_cache import ImageCache
from dassl.data.transforms import build_transform, takes_pixels, to_floats
from dassl.data.wrapper import read_image
from scripts.benchmarks.command import answer, ask_process, make_parser, require_least
from scripts.benchmarks.tools import begin_training, build_run, write_picture, write_pictures
from scripts.training.config import default_config

BATCH, CLASSES, EPOCHS = 32, 10, 5
PHOTOGRAPH, REPEATS = (500, 375), 100  # pixels; times that a step is repeated
# With this much noise a JPEG file has about 100 kB, as ImageNet's photographs of this size have.
GRAIN, QUALITY = 16, 90
KINDS = ("torchvision", "ours", "cached", "bytes", "fast resize")
BY_GPU = "decode cuda"


def theirs(cfg: CfgNode, side: int) -> T.Compose:
    """The training transform as torchvision's users write it."""
    bicubic = T.InterpolationMode.BICUBIC
    return T.Compose(
        [
            T.RandomResizedCrop(side, cfg.INPUT.RRCROP_SCALE, interpolation=bicubic),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD),
        ]
    )


def build_loader(kind: str, root: Path, workers: int, side: int) -> Any:
    """Return a loader, of ``KINDS`` or ``BY_GPU``, of training pictures, cut to ``side`` pixels."""
    options = ["DATASET.NUM_SHOTS", -1, "DATALOADER.TRAIN_X.BATCH_SIZE", BATCH]
    options += ["DATALOADER.NUM_WORKERS", workers, "INPUT.SIZE", f"({side}, {side})"]
    options += ["INPUT.FAST_RESIZE", kind == "fast resize"]
    options += ["DATALOADER.CACHE_IMAGES", 0.0 if kind in ("torchvision", "ours") else 2.0]
    options += ["INPUT.DECODE", "cuda" if kind == BY_GPU else "pillow"]
    device = "auto" if kind == BY_GPU else "cpu"
    trainer = build_run("ZeroshotCLIP", root, "shapes", device, *options)
    begin_training(trainer)
    ours = trainer.train_loader_x
    if kind in ("bytes", "fast resize"):
        # As for a GPU, but the bytes stay what they are: a GPU's time is not the processor's.
        ours.dataset.device = torch.device("cpu")
        ours.dataset.finish = lambda batch: None
    if kind != "torchvision":
        return ours
    folder = ImageFolder(str(root / "pictures" / "train"), theirs(trainer.cfg, side))
    return DataLoader(
        folder,
        BATCH,
        shuffle=True,
        num_workers=ours.num_workers,
        drop_last=True,
        persistent_workers=ours.num_workers > 0,
    )


def measure(kind: str, root: Path, workers: int, side: int) -> float:
    """Pictures per second: the median of ``EPOCHS`` epochs, after one to warm up."""
    torch.set_num_threads(1)  # as each worker of a loader has it, so that cores can be compared
    loader = build_loader(kind, root, workers, side)
    for _ in _pictures(loader):  # starts the workers and fills the system's file cache
        pass
    speeds = []
    for _ in range(EPOCHS):
        started = time.perf_counter()
        count = sum(_pictures(loader))
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the last batch is still being cut otherwise
        speeds.append(count / (time.perf_counter() - started))
    return statistics.median(speeds)


def _pictures(loader: Any) -> Iterator[int]:
    for batch in loader:  # ours gives dictionaries, torchvision's (images, labels)
        yield len(batch["img"] if isinstance(batch, dict) else batch[0])


def milliseconds(step: Callable[[], object]) -> float:
    """Of processor time that a step takes: the median, which other programs hardly change."""
    found = []
    for _ in range(REPEATS + 1):
        started = time.process_time()
        step()
        found.append(1000 * (time.process_time() - started))
    return statistics.median(found[1:])


def write_photograph(path: Path, rng: np.random.Generator) -> None:
    """Write a random picture that takes as long to decode as a photograph."""
    write_picture(path, PHOTOGRAPH, rng)
    pixels = np.asarray(read_image(path), dtype=np.float32)  # (H, W, 3)
    grain = rng.normal(0, GRAIN, (*pixels.shape[:2], 1))
    Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(path, quality=QUALITY)


def steps_of_a_picture(path: Path, side: int) -> list[tuple[str, float, float]]:
    """Rows (step, ms with Pillow, ms with INPUT.FAST_RESIZE) of a picture cut to ``side``."""
    torch.set_num_threads(1)  # as a worker of a loader has it
    decoding = milliseconds(partial(read_image, path))
    image = read_image(path)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, H, W)
    cache = ImageCache([str(path)], 3 * image.width * image.height)
    cache.put(str(path), image)
    kept = milliseconds(partial(cache.get, str(path)))
    rows = [("decoding", decoding, decoding), ("from the cache", kept, kept)]
    for name, is_train in (("test transform", False), ("training transform", True)):
        found = []
        for fast in (False, True):
            cfg = default_config()
            cfg.VERBOSE, cfg.INPUT.SIZE, cfg.INPUT.FAST_RESIZE = False, (side, side), fast
            transform: Any = build_transform(cfg, is_train)
            torch.manual_seed(0)  # the same crops
            # As the loader does it.
            step = partial(to_floats, transform, pixels) if takes_pixels(transform) else None
            found.append(milliseconds(step or partial(transform, image)))
        rows.append((name, found[0], found[1]))
    return rows


def limit(path: Path, side: int) -> str:
    """What Pillow's resizing, which nothing else gives to the byte, leaves to be gained."""
    torch.set_num_threads(1)  # as a worker of a loader has it
    transform, image = theirs(default_config(), side), default_loader(str(path))
    whole = milliseconds(lambda: transform(default_loader(str(path))))
    resizing = milliseconds(partial(transform.transforms[0], image))
    return (
        f"Pillow's cropping and resizing takes {resizing:.2f} ms of torchvision's {whole:.2f}: "
        f"without INPUT.FAST_RESIZE no loader is {whole / resizing:.1f} times as fast."
    )


def _measure_apart(kind: str, root: Path, workers: int, side: int) -> float:
    return ask_process("loading", "--workers", workers, "--side", side, "--worker", kind, root)


def compare(
    root: Path, workers: Sequence[int], side: int, rounds: int, kinds: Sequence[str] = KINDS
) -> list[list[str]]:
    """Per number of workers: pictures/s of all, with median ratios to theirs, and ours per core."""
    rows = []
    for count in tqdm(workers, disable=None):
        found: dict[str, list[float]] = {kind: [] for kind in kinds}
        for kind in [*kinds] * rounds:
            found[kind].append(_measure_apart(kind, root, count, side))
        row = [str(count)]
        for kind in kinds:
            pairs = zip(found[kind], found["torchvision"], strict=True)
            times = statistics.median(ours / theirs for ours, theirs in pairs)
            row.append(f"{statistics.median(found[kind]):.0f} ({times:.2f}x)")
        cores = min(max(count, 1), os.cpu_count() or 1)  # 0 workers load in the main process
        rows.append([*row, f"{statistics.median(found['ours']) / cores:.0f}"])
    return rows


def compare_sizes(
    temporary: Path,
    pictures: int,
    workers: Sequence[int],
    side: int,
    rounds: int,
    kinds: Sequence[str] = KINDS,
) -> list[list[str]]:
    """The rows of :func:`compare` of small pictures and of photographs, with their size first."""
    rows = []
    for width, height in ((side, side), PHOTOGRAPH):
        root = temporary / f"{width}x{height}"
        root.mkdir()
        write_pictures(root, CLASSES, pictures // CLASSES, test=1, side=side)
        if (width, height) == PHOTOGRAPH:
            rng = np.random.default_rng(0)
            for path in sorted((root / "pictures" / "train").rglob("*.jpg")):
                write_photograph(path, rng)
        rows += [[root.name, *row] for row in compare(root, workers, side, rounds, kinds)]
    return rows


def main(argv: Sequence[str]) -> int:
    """Print the table, or one measurement with ``--worker``."""
    parser = make_parser("loading", __doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--side", type=int, default=224, help="of files and crops, in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--decode", choices=("pillow", "cuda"), default="pillow", help="see above")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        kind, root = args.worker
        return answer(lambda: measure(kind, Path(root), args.workers[0], args.side))
    require_least(parser, args, {"pictures": BATCH * CLASSES, "rounds": 1, "side": 16})
    if args.decode == "cuda" and not torch.cuda.is_available():
        parser.error("--decode cuda needs a CUDA GPU, and PyTorch sees none; leave it out")
    kinds = (*KINDS, BY_GPU) if args.decode == "cuda" else KINDS
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = compare_sizes(folder, args.pictures, args.workers, args.side, args.rounds, kinds)
        photograph = folder / "photograph.jpg"
        write_photograph(photograph, np.random.default_rng(0))
        steps = steps_of_a_picture(photograph, args.side)
        bound = limit(photograph, args.side)
    headers = ["pictures", "workers", "torchvision, pictures/s", *kinds[1:], "ours per core"]
    print(tabulate(rows, headers, stralign="right"))
    headers = [f"ms of a picture of {PHOTOGRAPH[0]} x {PHOTOGRAPH[1]}", "ours", "fast resize"]
    print("\n" + tabulate(steps, headers, floatfmt=".2f") + f"\n\n{bound}")
    return 0
