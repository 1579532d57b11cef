"""Numbers the papers report, as means over datasets, each with the place it was read in.

All are ViT-B/16 and 16 shots unless the column says otherwise. They are quoted beside our own
means only when those cover the same datasets; they are no targets of any test. Numbers that could
not be traced to a paper or a repository are left out.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One reported row.

    Attributes:
        method: Name as printed.
        values: Accuracy in percent by column of the protocol's table of means.
        source: Where the numbers were read, and what to know before comparing.
    """

    method: str
    values: dict[str, float]
    source: str


def _base2novel(method: str, base: float, novel: float, hm: float, source: str) -> Published:
    return Published(method, {"base": base, "novel": novel, "hm": hm}, source)


def _few_shot(method: str, values: tuple[float, ...], source: str) -> Published:
    shots = ("1", "2", "4", "8", "16")
    return Published(method, dict(zip(shots, values, strict=True)), source)


_LIGHTRA = "LightRA, doi:10.1109/TMM.2026.3676654"
_RADA = "RAda, arXiv:2507.15480, efficient fine-tuning"
_COCOOP = "CoCoOp, arXiv:2203.05557"
_CLIP_SVD = "rerun by others, read-me of CLIP-SVD"

# Means over the 11 datasets; HM is of the mean base and the mean novel accuracy.
BASE2NOVEL = (
    _base2novel("CLIP", 69.34, 74.22, 71.70, f"as listed by {_LIGHTRA}"),
    _base2novel(
        "CoOp",
        82.69,
        63.22,
        71.66,
        f"CoOp read-me; run for {_COCOOP}. KgCoOp's rerun is 82.63 / 67.99 / 74.60",
    ),
    _base2novel("CoCoOp", 80.47, 71.69, 75.83, _COCOOP),
    _base2novel("KgCoOp", 80.73, 73.60, 77.00, "KgCoOp, arXiv:2303.13283"),
    _base2novel("ProGrad", 82.48, 70.75, 76.16, "as listed by KgCoOp, arXiv:2303.13283"),
    _base2novel("VPT", 80.24, 73.43, 76.68, "MaPLe repository, deep vision prompting"),
    _base2novel(
        "IVLP",
        84.21,
        71.79,
        77.51,
        "PromptSRC, arXiv:2307.06948. MaPLe's IVLP is another recipe: 82.15 / 74.07 / 77.90",
    ),
    _base2novel("MaPLe", 82.28, 75.14, 78.55, "MaPLe, arXiv:2210.03117"),
    _base2novel("PromptSRC", 84.26, 76.10, 79.97, "PromptSRC, arXiv:2307.06948"),
    _base2novel("CoPrompt", 84.00, 77.23, 80.48, "CoPrompt, arXiv:2306.01195"),
    _base2novel("MMA", 83.20, 76.80, 79.87, "MMA, CVPR 2024"),
    _base2novel("MaPLe + DePT", 84.85, 74.82, 79.52, "DePT, arXiv:2309.07439"),
    _base2novel("PromptSRC + DePT", 85.19, 76.17, 80.43, "DePT, arXiv:2309.07439"),
    _base2novel(
        "HPT",
        84.32,
        76.86,
        80.42,
        "HPT, arXiv:2312.06323, which prints HM 80.23, the mean of the datasets' HMs",
    ),
    _base2novel(
        "ProVP-Ref",
        85.20,
        73.22,
        78.76,
        "ProVP, arXiv:2304.08386; its code keeps the epoch that is best on the test set",
    ),
    _base2novel("RAda", 82.16, 74.14, 77.94, _RADA),
    _base2novel("RAda + Prompt", 84.18, 75.61, 79.67, _RADA),
    _base2novel("RAda + Adapter", 84.32, 76.25, 80.08, _RADA),
    _base2novel("LightRA", 84.94, 78.51, 81.60, _LIGHTRA),
)

# RAda's efficient fine-tuning is base-to-novel on frozen encoders: its own rows, and CLIP's.
EFT = tuple(row for row in BASE2NOVEL if row.method == "CLIP" or row.method.startswith("RAda"))

# Means over the 11 datasets by shots.
FEW_SHOT = (
    _few_shot("CoOp", (68.09, 70.13, 73.59, 76.45, 79.01), _CLIP_SVD),
    _few_shot("CoCoOp", (66.95, 67.63, 71.98, 72.92, 75.02), _CLIP_SVD),
    _few_shot("KgCoOp", (69.51, 71.57, 74.48, 75.82, 77.26), _CLIP_SVD),
    _few_shot("ProGrad", (68.20, 71.78, 74.21, 77.93, 79.20), _CLIP_SVD),
    _few_shot("CLIP-Adapter", (67.87, 70.20, 72.65, 76.92, 79.86), _CLIP_SVD),
)

# Trained on ImageNet. "targets" is the mean over the other 10 datasets, "shifts" over the 4.
CROSS_DATASET = (
    Published(
        "CoOp",
        {
            "imagenet": 71.51,
            "targets": 63.88,
            "imagenetv2": 64.20,
            "imagenet_sketch": 47.99,
            "imagenet_a": 49.71,
            "imagenet_r": 75.21,
            "shifts": 59.28,
        },
        "CoOp read-me",
    ),
    Published(
        "CoCoOp",
        {
            "imagenet": 71.02,
            "targets": 65.74,
            "imagenetv2": 64.07,
            "imagenet_sketch": 48.75,
            "imagenet_a": 50.63,
            "imagenet_r": 76.18,
            "shifts": 59.90,
        },
        "CoOp read-me",
    ),
    Published("MaPLe", {"targets": 66.30, "shifts": 60.26}, "MaPLe, arXiv:2210.03117"),
    Published("PromptSRC", {"targets": 65.81, "shifts": 60.65}, "PromptSRC, arXiv:2307.06948"),
    Published("HPT", {"targets": 67.74, "shifts": 60.71}, "HPT, arXiv:2312.06323"),
)


def _shifts(method: str, source: str, **values: float) -> Published:
    """A row with one number per dataset; the mean over those that are shifts is made here."""
    shifts = [value for name, value in values.items() if name != "imagenet"]
    return Published(method, {**values, "shifts": sum(shifts) / len(shifts)}, source)


# Full fine-tuning on all of ImageNet; "shifts" is the mean over the five.
_FFT = f"{_RADA.rsplit(', ', 1)[0]}, full fine-tuning, Table 1"
FFT = (
    _shifts(
        "CLIP",
        _FFT,
        imagenet=68.3,
        imagenetv2=61.9,
        imagenet_r=77.7,
        imagenet_a=49.9,
        imagenet_sketch=48.2,
        objectnet=54.2,
    ),
    _shifts(
        "RAda",
        f"{_FFT}; here RAdaFFT",
        imagenet=78.1,
        imagenetv2=68.3,
        imagenet_r=72.8,
        imagenet_a=47.3,
        imagenet_sketch=46.9,
        objectnet=53.8,
    ),
    _shifts(
        "RAda-FT",
        f"{_FFT}; here RAdaFT",
        imagenet=81.4,
        imagenetv2=71.9,
        imagenet_r=75.5,
        imagenet_a=51.7,
        imagenet_sketch=50.4,
        objectnet=56.8,
    ),
)

# Test-time training on single images; "shifts" is the mean over the four.
_TTT = f"{_RADA.rsplit(', ', 1)[0]}, test-time training"
TTT = (
    _shifts(
        "CLIP", _TTT, imagenetv2=60.86, imagenet_sketch=46.09, imagenet_a=47.87, imagenet_r=73.98
    ),
    _shifts(
        "RAda",
        f"{_TTT}; here RAdaTTT",
        imagenetv2=64.10,
        imagenet_sketch=49.36,
        imagenet_a=61.17,
        imagenet_r=79.35,
    ),
)

PUBLISHED = {
    "base2novel": BASE2NOVEL,
    "few_shot": FEW_SHOT,
    "cross_dataset": CROSS_DATASET,
    "eft": EFT,
    "fft": FFT,
    "ttt": TTT,
}
