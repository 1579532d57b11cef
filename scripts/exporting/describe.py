"""What an export says of itself: how images are prepared, and a README that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yacs.config import CfgNode

from clip.names import OPENAI, arch_and_tag, openai_arch, source_of
from scripts.exporting.parts import FILES

__all__ = ["ONNX_LINES", "preprocessing", "readme"]

# Ten lines without this project; `preprocess.json` has the numbers.
ONNX_LINES = """\
import json, sys, numpy, onnxruntime
from PIL import Image, ImageOps
names, p = (json.load(open(name)) for name in ("classes.json", "preprocess.json"))
image = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("RGB")
size = [int(p["resize"] * side / min(image.size)) for side in image.size]  # the shorter side
image = image.resize(size, Image.Resampling[p["interpolation"].upper()])
left, top = (round((side - part) / 2) for side, part in zip(image.size, p["crop"]))
image = image.crop((left, top, left + p["crop"][0], top + p["crop"][1]))
x = (numpy.asarray(image) / 255 - p["mean"]) / p["std"]
x = x.transpose(2, 0, 1)[None].astype("float32")  # (1, 3, height, width), any number of images
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
logits, features = session.run(None, {"image": x})
print(names[logits[0].argmax()], logits[0].max())
"""
PT2_LINES = """\
import torch
logits, features = torch.export.load("model.pt2").module()(torch.from_numpy(x))
"""


def preprocessing(cfg: CfgNode) -> dict[str, Any]:
    """How the run's test transform makes its input of an image, as numbers.

    Raises:
        ValueError: There is no such transform.
    """
    if cfg.INPUT.NO_TRANSFORM:
        raise ValueError(
            "the run has INPUT.NO_TRANSFORM True, so that nothing says how its images are made"
        )
    # As torchvision has it, so that Pillow alone can do the same.
    height, width = cfg.INPUT.SIZE
    normalised = "normalize" in cfg.INPUT.TRANSFORMS
    return {
        "resize": max(height, width),  # of the shorter side
        "crop": [width, height],  # of the centre
        "interpolation": cfg.INPUT.INTERPOLATION,
        "mean": list(cfg.INPUT.PIXEL_MEAN) if normalised else [0.0, 0.0, 0.0],
        "std": list(cfg.INPUT.PIXEL_STD) if normalised else [1.0, 1.0, 1.0],
    }


def readme(about: Mapping[str, Any]) -> str:
    """The text of an export's README, of the content of its ``export.json``."""
    files = about["files"]
    # What a user may do without the graph depends on what makes the logits.
    logits = "`logits` over the classes, in the order of `classes.json`"
    if about["cosine"]:
        logits += (
            f"; they are {about['logit_scale']:.4f} times `features @ text_features.T`, so that "
            "other classes need no more than other text features"
        )
    else:
        logits += "; more than cosines of the two features, so the graph is needed"
    # Only what is in the folder is described: its reader may have nothing else.
    lines = [
        f"# {about['trainer']} on {about['backbone']}, {about['num_classes']} classes",
        "",
        f"- **In**: `image`, floats (B, 3, {about['height']}, {about['width']}) as "
        "`preprocess.json` says.",
        f"- **Out**: {logits}; `features`, unit norm, (B, {about['embed_dim']}).",
        "- **`text_features.npy`**: the classes' weights, a row each.",
        *(f"- **Not there, `{FILES[part]}`**: {why}." for part, why in about["left_out"].items()),
        "",
    ]
    if FILES["onnx"] in files:
        lines += [
            "`pip install onnxruntime pillow numpy`; in this folder, `python run.py photo.jpg` is",
            "",
            f"```python\n{ONNX_LINES}```",
            "",
        ]
    if FILES["pt2"] in files:
        lines += ["The same by PyTorch alone:", "", f"```python\n{PT2_LINES}```", ""]
    if FILES["weights"] in files:
        lines += ["Both encoders, fine-tuned, as a CLIP of its own:", "", *_weights(about), ""]
    if FILES["adapter"] in files:
        lines += [
            f"`{FILES['adapter']}` is what was trained, for the project that trained it: "
            "`python train.py --predict photos/ --model-dir` this folder.",
            "",
        ]
    lines += [_agreement(about), ""]
    return "\n".join(lines)


def _weights(about: Mapping[str, Any]) -> list[str]:
    name = about["backbone"]
    if name in OPENAI or source_of(name) in ("openclip", "siglip"):
        arch = openai_arch(name) if name in OPENAI else arch_and_tag(name)[0]
        call = f'open_clip.create_model("{arch}", pretrained="{FILES["weights"]}")'
    else:  # read off the shapes of the weights, in half precision at first
        call = f'open_clip.load_openai_model("{FILES["weights"]}", device="cpu")'
    return [f"```python\nimport open_clip\nmodel = {call}\n```"]


def _agreement(about: Mapping[str, Any]) -> str:
    """The differences that were found when the files were written."""
    # In the words of `export.json`, whose numbers they are.
    found = [
        f"`{name}` " + ", ".join(f"{what} {distance:.1e}" for what, distance in worst.items())
        for name, worst in about["agreement"].items()
    ]
    return "Greatest differences from the trained run: " + "; ".join(found or ["none"]) + "."
