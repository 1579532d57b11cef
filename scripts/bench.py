"""Paired timings of the fast paths against the plain way of doing the same.

    python scripts/bench.py                  # all cases, about ten minutes on two cores
    python scripts/bench.py --cases ten --rounds 1

The model has ViT-B/16's shape and random weights; fp32 on the CPU. Every measurement runs in a
process of its own, plain and fast in turn, so that both meet the same machine and the peak memory
is each one's own.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import open_clip
import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from clip import Backbone, adapters_disabled, attach_residual_attention, freeze_except
from clip.backbones import OPENAI_INPUT
from trainers.lightra import LightRACLIP, lightra_loss

CLASSES, BATCH = 200, 4
CASES = {  # name -> (what is measured, words that bring a prompt to its length)
    "forty": ("LightRA training step, 200 classes, batch 4, 40-token prompts", 33),
    "ten": ("LightRA training step, 200 classes, batch 4, 10-token prompts", 3),
    "evaluation": ("Encoding 200 classes x 10 prompts of 8 to 40 tokens", 0),
}


class PlainAttention(nn.Module):
    """LightRA as printed: prefix copied for every sample, attention as explicit matrix products."""

    def __init__(self, host: nn.MultiheadAttention) -> None:
        super().__init__()
        self.host: Any = host

    def forward(
        self, x: Tensor, *_: Tensor, attn_mask: Tensor | None = None, **__: object
    ) -> tuple[Tensor, None]:
        """(B, L, W) -> (B, L, W)."""
        host = self.host
        batch, length, width = x.shape
        qkv = F.linear(x, host.in_proj_weight, host.in_proj_bias)
        q, k, v = (
            t.view(batch, length, host.num_heads, -1).transpose(1, 2) for t in qkv.chunk(3, -1)
        )
        scale = 1 / math.sqrt(host.head_dim)
        scores = q @ k.transpose(-1, -2) * scale
        if attn_mask is not None:
            scores = scores + attn_mask
        out = scores.softmax(-1) @ v
        if host.residual is not None and host.residual.enabled:
            key, value = (
                t.expand(batch, -1, -1, -1).clone()
                for t in (host.residual.key, host.residual.value)
            )
            out = out + (q @ key.transpose(-1, -2) * scale).softmax(-1) @ value
        return host.out_proj(out.transpose(1, 2).reshape(batch, length, width)), None


def build(case: str, plain: bool) -> LightRACLIP:
    """A random ViT-B/16 with residual attention and the case's prompts."""
    torch.manual_seed(0)
    backbone = Backbone(open_clip.create_model("ViT-B-16-quickgelu"), "random", OPENAI_INPUT)
    backbone.requires_grad_(False).eval()
    attach_residual_attention(backbone)
    freeze_except(backbone)
    if plain:
        for transformer in (backbone.vision_transformer, backbone.text_transformer):
            for block in transformer.resblocks:
                block.attn = PlainAttention(block.attn)
    if case == "evaluation":
        prompts = [["a photo of a cat" + " cat" * (32 * p // 9) + "." for p in range(10)]] * CLASSES
    else:
        prompts = [["a photo of a cat" + " cat" * CASES[case][1]]] * CLASSES
    return LightRACLIP(backbone, prompts, renormalize=False)


def training_step(model: LightRACLIP, plain: bool) -> Callable[[], None]:
    """One step; the frozen text features are given to both, as both compute them once."""
    images, labels = torch.randn(BATCH, 3, 224, 224), torch.arange(BATCH)
    frozen = F.normalize(torch.randn(CLASSES, model.backbone.embed_dim), dim=-1)
    index = torch.arange(CLASSES)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)

    def plain_text() -> Tensor:
        return F.normalize(model.backbone.model.encode_text(model.bank.tokens), dim=-1)

    def step() -> None:
        with torch.no_grad(), adapters_disabled(model.backbone):
            f0 = model.image_features(images)
        f = model.image_features(images)
        h = plain_text() if plain else model.bank.encode(model.backbone, index)
        loss = lightra_loss(f, h, f0, frozen, labels, model.scale, 3.5, 9.0).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def evaluation(model: LightRACLIP, plain: bool) -> Callable[[], None]:
    """Features of all prompts; the plain way takes them as they come, 77 tokens each."""

    @torch.no_grad()
    def encode() -> None:
        if plain:
            for tokens in model.bank.tokens.split(100):
                F.normalize(model.backbone.model.encode_text(tokens), dim=-1)
        else:
            model.bank.encode_all(model.backbone)

    return encode


def measure(case: str, plain: bool, steps: int) -> dict[str, float]:
    """Median seconds and peak memory in MiB of this process."""
    model = build(case, plain)
    run = (evaluation if case == "evaluation" else training_step)(model, plain)
    if case == "evaluation":
        steps = 1  # long, and free of first-time costs
    else:
        run()  # warm-up
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": statistics.median(seconds),
        "mib": peak / (2**20 if sys.platform == "darwin" else 2**10),
    }


def compare(case: str, args: argparse.Namespace) -> list[float]:
    """Median seconds of both ways and of their ratio, peak memory of both and its ratio."""
    found: dict[str, list[dict[str, float]]] = {"plain": [], "fast": []}
    for kind in ("plain", "fast") * args.rounds:
        command = [sys.executable, __file__, "--cases", case, "--worker", kind]
        command += ["--steps", str(args.steps), "--threads", str(args.threads)]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found[kind].append(json.loads(out.splitlines()[-1]))
    seconds = {kind: [m["seconds"] for m in ms] for kind, ms in found.items()}
    memory = {kind: max(m["mib"] for m in ms) for kind, ms in found.items()}
    ratios = [p / f for p, f in zip(seconds["plain"], seconds["fast"], strict=True)]
    return [
        statistics.median(seconds["plain"]),
        statistics.median(seconds["fast"]),
        statistics.median(ratios),
        memory["plain"],
        memory["fast"],
        memory["fast"] / memory["plain"],
    ]


def main() -> None:
    """Run the cases and print a table, or one measurement with ``--worker``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=1, help="pairs of processes per case")
    parser.add_argument(
        "--steps", type=int, default=2, help="timed steps in a process, after one warm-up"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", choices=("plain", "fast"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.worker:
        print(json.dumps(measure(args.cases[0], args.worker == "plain", args.steps)))
        return
    headers = ["case", "plain s", "fast s", "times faster", "plain MiB", "fast MiB", "memory ratio"]
    formats = ("", ".2f", ".2f", ".2f", ".0f", ".0f", ".2f")
    rows = []
    for case in tqdm(args.cases, disable=None):
        rows.append([CASES[case][0], *compare(case, args)])
        tqdm.write(tabulate(rows[-1:], headers, floatfmt=formats))
    if len(rows) > 1:
        print(tabulate(rows, headers, floatfmt=formats))


if __name__ == "__main__":
    main()
