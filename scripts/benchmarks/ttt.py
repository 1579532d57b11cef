"""Test-time training of RAda's mask: images adapted side by side against one by one.

    python scripts/bench.py ttt                     # 16 images of 64 views, about ten minutes
    python scripts/bench.py ttt --sizes 128x40 --rounds 5 --backbone none

All ways start from the views' features: random unit vectors around the classes, which cost the same
as an encoder's. Two ways loop over images, with a copy of the mask and ``torch.optim.AdamW``: the
"released loop" runs all views through the mask in every step and takes the loss of the chosen ones,
as TPT's code does; "chosen only" runs just the chosen ones. The encoder's share of the time is
measured on a ViT-B/16 with random weights.
"""

from __future__ import annotations

import argparse
import copy
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor
from torch.nn import functional as F

import clip
from scripts.benchmarks.command import make_parser, require_least
from scripts.benchmarks.tools import RANDOM_VIT, backbone_name
from trainers.heads import RationalHead
from trainers.test_time.episodes import marginal_entropy, most_confident
from trainers.test_time.rada_ttt import adapted_logits

SCALE = torch.tensor(100.0)
SETTINGS: dict[str, Any] = {"steps": 3, "lr": 8e-4, "weight_decay": 0.01}  # the paper's
Way = Callable[[RationalHead, Tensor, Tensor, int], Tensor]
HEADERS = [
    "start",
    "D",
    "classes",
    "released loop s",
    "chosen only s",
    "side by side s",
    "times faster than released",
    "than chosen only",
    "difference",
]
FORMATS = ("", "", "", ".3f", ".3f", ".3f", ".2f", ".2f", ".1e")


def one_by_one(
    start: RationalHead,
    features: Tensor,
    text: Tensor,
    selected: int,
    *,
    all_views: bool,
    scale: Tensor = SCALE,
) -> Tensor:
    """Logits of view 0 of each image, (N, K), from episodes in a loop.

    Args:
        start: The mask that every episode starts from.
        features: Of the views, unit norm, (N, V, D).
        text: (K, D).
        selected: Views to learn from.
        all_views: Run all views through the mask in every step, not only to choose.
        scale: s.
    """
    found = []
    for views in features:
        head = copy.deepcopy(start).requires_grad_()
        optimizer = torch.optim.AdamW(
            head.parameters(), lr=SETTINGS["lr"], weight_decay=SETTINGS["weight_decay"]
        )
        with torch.set_grad_enabled(all_views):
            logits = head(views, text, scale).logits  # (V, K)
        chosen = most_confident(logits.detach()[None], selected)[0]
        for step in range(SETTINGS["steps"]):
            if not all_views:
                logits = head(views[chosen], text, scale).logits
            elif step:  # the first step reuses the logits that chose the views
                logits = head(views, text, scale).logits
            loss = marginal_entropy(logits[chosen] if all_views else logits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            found.append(head(views[:1], text, scale).logits)
    return torch.cat(found)


def side_by_side(start: RationalHead, features: Tensor, text: Tensor, selected: int) -> Tensor:
    """The same as :func:`one_by_one`, as the trainer does it."""
    return adapted_logits(
        start, features, text, SCALE, selected=selected, entropy="marginal", **SETTINGS
    )


WAYS: tuple[Way, ...] = (
    partial(one_by_one, all_views=True),
    partial(one_by_one, all_views=False),
    side_by_side,
)


def make_features(images: int, views: int, classes: int, width: int) -> tuple[Tensor, Tensor]:
    """Unit vectors: views (N, V, D) around some of the classes (K, D)."""
    torch.manual_seed(0)
    text = F.normalize(torch.randn(classes, width), dim=-1)
    own = text[torch.randint(classes, (images, 1))]  # (N, 1, D)
    noise = torch.randn(images, views, width) / width**0.5
    return F.normalize(0.2 * own + noise, dim=-1), text


def compare(args: argparse.Namespace, width: int, classes: int, trained: bool) -> list[Any]:
    """A row of the table: medians over rounds of all ways in turn, and of their ratios."""
    features, text = make_features(args.images, args.views, classes, width)
    start = RationalHead(width).requires_grad_(False)
    if trained:
        for parameter in start.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))  # a mask that is not all ones
    selected = max(1, args.views // 10)
    # Warms up, and shows that all ways agree.
    found = [way(start, features[:2], text, selected).softmax(-1) for way in WAYS]
    difference = max((other - found[-1]).abs().max().item() for other in found[:-1])
    seconds: list[list[float]] = [[] for _ in WAYS]
    for _ in range(args.rounds):
        for way, taken in zip(WAYS, seconds, strict=True):
            started = time.perf_counter()
            way(start, features, text, selected)
            taken.append(time.perf_counter() - started)
    ratios = [
        statistics.median(slow / fast for slow, fast in zip(taken, seconds[-1], strict=True))
        for taken in seconds[:-1]
    ]
    medians = map(statistics.median, seconds)
    return ["trained" if trained else "ones", width, classes, *medians, *ratios, difference]


@torch.no_grad()
def encoder_seconds(name: str, views: int) -> tuple[float, int]:
    """Seconds that an encoder takes for one image's views, and its embedding width."""
    with tempfile.TemporaryDirectory() as folder:
        backbone = clip.load(backbone_name(name, Path(folder)))
    pictures = torch.randn(views, 3, backbone.image_size, backbone.image_size)
    backbone.encode_image(pictures[:2])  # warm-up
    started = time.perf_counter()
    backbone.encode_image(pictures)
    return time.perf_counter() - started, backbone.embed_dim


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = make_parser("ttt", __doc__)
    parser.add_argument("--images", type=int, default=16, help="adapted side by side")
    parser.add_argument("--views", type=int, default=64)
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=["128x40", "512x200"],
        help="embedding width x classes: the bundled suite's, ViT-B/16's on ImageNet-R",
    )
    parser.add_argument("--rounds", type=int, default=3, help="all ways in turn, that many times")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--backbone", default=RANDOM_VIT, help="encoder of the share, or none to leave it out"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = build_parser()
    args = parser.parse_args(argv)
    require_least(parser, args, {"images": 2, "rounds": 1, "threads": 1, "views": 2})
    sizes = []
    for size in args.sizes:
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", size)
        if not match or int(match[1]) % 8:
            parser.error(f"--sizes: {size!r} is not <width, a multiple of 8>x<classes>: 512x200")
        sizes.append((int(match[1]), int(match[2])))
    torch.set_num_threads(args.threads)
    rows = []
    for width, classes in sizes:
        for trained in (False, True):
            rows.append(compare(args, width, classes, trained))
            print(f"{rows[-1][:3]}: {rows[-1][6]:.2f}, {rows[-1][7]:.2f}", file=sys.stderr)
    print(tabulate(rows, HEADERS, floatfmt=FORMATS))
    if args.backbone != "none":
        print_share(rows, args)
    return 0


def print_share(rows: Sequence[Sequence[Any]], args: argparse.Namespace) -> None:
    """Print how much of the time is the encoder's, for rows of its width."""
    seconds, width = encoder_seconds(args.backbone, args.views)
    print(f"\n{args.backbone}, {args.views} views of one image: {seconds:.2f} s")
    for start, d, classes, _, _, fast, *_ in rows:
        if d == width:
            adapting = fast / args.images
            print(
                f"  {classes} classes, from {start}: adaptation {adapting:.3f} s an image, "
                f"{100 * seconds / (seconds + adapting):.1f}% of the time is the encoder's"
            )
