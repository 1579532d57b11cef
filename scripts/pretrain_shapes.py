"""Pre-train the bundled tiny CLIP on captions of a broad draw of the shapes world.

    python scripts/pretrain_shapes.py            # 25 to 35 minutes on two CPU cores

Writes ``clip/weights/shapes.pt``. The pictures differ in style from the bundled datasets: what they
teach has to be transferred, and it is the methods that adapt it to the datasets' style.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import open_clip
import torch
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from clip.backbones import OPENAI_INPUT
from clip.checkpoints import BUNDLED, save_bundled
from clip.text import encode_tokens
from dassl.config.paths import file_flag
from dassl.errors import plain_errors
from datasets.shapes_captions import caption
from datasets.shapes_render import COLOURS, FORMS, IMAGE_SIZE, TEXTURES, Objects, Style, render

STYLES = (  # share of the pictures, style
    (0.6, Style()),
    (0.15, Style(size=(0.4, 0.7), noise=(0.0, 0.1), background_texture=(0.0, 0.3))),
    (0.15, Style(outline=True, second_tone=(0.5, 1.0))),
    (0.10, Style(levels=5, block=2, noise=(0.0, 0.02))),
)
TEMPLATES = (
    *["a photo of a {}.", "A photo of a {},", "a photo of {}.", "a picture of a {}.", "{}."] * 8,
    *[template("{}") for template in OPENAI_IMAGENET_TEMPLATES],
)


def draw_objects(n: int, rng: np.random.Generator) -> Objects:
    """A broad draw of the world: every combination, a quarter with several objects."""
    several = rng.random(n) < 0.25  # (n,)
    return Objects(
        rng.integers(len(FORMS), size=n),
        rng.integers(len(COLOURS), size=n),
        rng.integers(len(TEXTURES), size=n),
        np.where(several, rng.integers(2, 5, size=n), 1),
    )


def draw_pictures(n: int, rng: np.random.Generator) -> tuple[Objects, Tensor]:
    """``n`` pictures over all styles: what they show and the pixels, (n, 3, S, S) uint8."""
    parts, pictures = [], []
    for share, style in STYLES:
        parts.append(draw_objects(round(n * share), rng))
        pictures.append(torch.from_numpy(render(parts[-1], style, rng)))
    joined = Objects(*(np.concatenate([getattr(p, f) for p in parts])
                       for f in ("form", "colour", "texture", "count")))  # fmt: skip
    return joined, torch.cat(pictures).permute(0, 3, 1, 2).contiguous()


def build_model() -> Any:
    """The tiny CLIP: OpenAI's architecture at 48 pixels, width 128, 3 + 2 layers."""
    return open_clip.model.CLIP(
        embed_dim=128,
        vision_cfg=open_clip.model.CLIPVisionCfg(
            layers=3, width=128, head_width=64, patch_size=8, image_size=IMAGE_SIZE
        ),
        text_cfg=open_clip.model.CLIPTextCfg(width=128, heads=2, layers=2),
        quick_gelu=True,
    )


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric cross entropy; features (B, D), unit norm."""
    logits = scale * image @ text.T  # (B, B)
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def train(model: Any, args: argparse.Namespace) -> Tensor:
    """Train in place; return the ids of all tokens that were seen."""
    rng = np.random.default_rng(args.seed)
    objects, pixels = draw_pictures(args.images, rng)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (OPENAI_INPUT.mean, OPENAI_INPUT.std))
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}],
        lr=args.lr, betas=(0.9, 0.98),
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps, pct_start=0.1)
    seen: set[int] = set()
    model.train()
    started = time.time()
    for step in tqdm(range(args.steps), disable=None):
        rows = rng.integers(len(objects), size=args.batch)  # (B,), with repetitions
        images = (pixels[rows].float() / 255 - mean) / std
        tokens = open_clip.tokenize([caption(objects, i, TEMPLATES, rng) for i in rows])
        seen.update(tokens.unique().tolist())  # the saved model keeps only their embeddings
        image = F.normalize(model.encode_image(images), dim=-1)
        text = F.normalize(encode_tokens(model, tokens), dim=-1)
        loss = contrastive_loss(image, text, model.logit_scale.exp())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))  # as in CLIP's training
        if step % 100 == 99:
            hit = (image @ text.T).argmax(1).eq(torch.arange(args.batch)).float().mean()
            print(
                f"step {step + 1} loss {loss.item():.3f} retrieval {hit:.3f} "
                f"scale {model.logit_scale.exp():.1f} {time.time() - started:.0f} s",
                flush=True,
            )
    return torch.tensor(sorted(seen))


def main() -> None:
    """Parse flags, train, write the weights."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--batch", type=int, default=192)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=file_flag, default=BUNDLED)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = build_model()
    token_ids = train(model, args)
    about = {k: v for k, v in vars(args).items() if k != "output"}
    save_bundled(model.eval(), token_ids, args.output, about)
    print(
        f"wrote {args.output}: {args.output.stat().st_size / 2**20:.1f} MiB, "
        f"{len(token_ids)} tokens"
    )


if __name__ == "__main__":
    with plain_errors():
        main()
