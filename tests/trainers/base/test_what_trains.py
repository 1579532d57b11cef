"""What trains in every method on ViT-B/16, through its trainer and its files: names and numbers."""

from itertools import product

import pytest
import torch

import clip
import trainers.hpt
from dassl.engine import build_trainer
from tests.conftest import REPOSITORY
from tests.trainers.plain import vit_b16

TEXT, VISION = "backbone.text_prompts.vectors", "backbone.vision_prompts.vectors"
HIERARCHY = "backbone.hierarchical_prompts."
CLASSES = 40  # of Shapes


def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def both_linear(*names: str, width: int = 512) -> dict[str, tuple[int, ...]]:
    return {k: v for name in names for k, v in linear(name, width, width).items()}


def conditional(prefix: str = "") -> dict[str, tuple[int, ...]]:
    net = f"{prefix}backbone.text_prompts.meta_net."
    return {
        prefix + TEXT: (1, 4, 512),
        **linear(f"{net}linear1", 512, 32),
        **linear(f"{net}linear2", 32, 512),
    }


def coupled(n_ctx: int, depth: int, prefix: str = "") -> dict[str, tuple[int, ...]]:
    found = {prefix + TEXT: (depth, n_ctx, 512)}
    for j in range(depth):
        found |= linear(f"{prefix}backbone.vision_prompts.maps.{j}", 512, 768)
    return found


def consistent(n_ctx: int, depth: int) -> dict[str, tuple[int, ...]]:
    adapters = {
        f"{kind}_adapter.{layer}.weight": shape
        for kind in ("image", "text")
        for layer, shape in (("down", (128, 512)), ("up", (512, 128)))
    }
    return coupled(n_ctx, depth) | adapters


def bottlenecks(layers: int = 8) -> dict[str, tuple[int, ...]]:
    found = {}
    for i in range(layers):
        name = f"backbone.multimodal_adapters.{i}."
        for tower, width in (("text", 512), ("vision", 768)):
            found |= linear(f"{name}down_{tower}", width, 32)
            found |= linear(f"{name}up_{tower}", 32, width)
        found |= linear(f"{name}shared", 32, 32)
    return found


def residual() -> dict[str, tuple[int, ...]]:
    return {
        f"backbone.model.{tower}transformer.resblocks.{i}.attn.residual.{kind}": (heads, 4, 64)
        for (tower, heads), i, kind in product(
            (("visual.", 12), ("", 8)), range(12), ("key", "value")
        )
    }


HEAD = both_linear(
    *(f"head.layers.0.{m}" for m in ("query.image", "query.text", "query.rational")),
    *(f"head.layers.0.{m}" for m in ("key", "value", "out")),
)
PROBE = {
    **linear("probe", 512, CLASSES),
    **{f"probe.{kind}_{what}": (512,) for kind in ("image", "text") for what in ("scale", "shift")},
}
OWN_CONTEXTS = ("TRAINER.CoOp.CTX_INIT", "", "TRAINER.CoOp.N_CTX", "4", "TRAINER.CoOp.CSC", "True")
SMALL_COPROMPT = ("TRAINER.CoPrompt.N_CTX", "2", "TRAINER.CoPrompt.PROMPT_DEPTH", "9")

# In the order of the table in docs/results.md, whose numbers are those of base2novel.
CASES = [
    ("ZeroshotCLIP/base2novel", (), {}, 0),
    ("CoOp/base2novel", (), {TEXT: (1, 4, 512)}, 2_048),
    ("CoOp/few_shot", (), {TEXT: (1, 16, 512)}, 8_192),
    ("CoOp/base2novel", OWN_CONTEXTS, {TEXT: (CLASSES, 4, 512)}, CLASSES * 2_048),
    ("CoCoOp/base2novel", (), conditional(), 35_360),
    ("KgCoOp/base2novel", (), {TEXT: (1, 4, 512)}, 2_048),
    ("ProGrad/base2novel", (), {TEXT: (1, 16, 512)}, 8_192),
    (
        "CLIPAdapter/base2novel",
        (),
        {"adapter.down.weight": (128, 512), "adapter.up.weight": (512, 128)},
        131_072,
    ),
    ("VPT/base2novel", (), {VISION: (12, 8, 768)}, 73_728),
    ("IVLP/base2novel", (), {TEXT: (9, 4, 512), VISION: (9, 4, 768)}, 46_080),
    ("IVLP/maple", (), {TEXT: (12, 2, 512), VISION: (12, 2, 768)}, 30_720),
    ("IVLP/cross_dataset", (), {TEXT: (12, 2, 512), VISION: (12, 2, 768)}, 30_720),
    ("IVLP/deep_language", (), {TEXT: (12, 4, 512)}, 24_576),
    ("MaPLe/base2novel", (), coupled(2, 9), 3_555_072),
    ("MaPLe/cross_dataset", (), coupled(2, 3), 1_185_024),
    ("PromptSRC/base2novel", (), {TEXT: (9, 4, 512), VISION: (9, 4, 768)}, 46_080),
    ("PromptSRC/cross_dataset", (), {TEXT: (3, 4, 512), VISION: (3, 4, 768)}, 15_360),
    ("CoPrompt/base2novel", (), consistent(4, 12), 5_014_528),
    ("CoPrompt/base2novel", SMALL_COPROMPT, consistent(2, 9), 3_817_216),
    ("MMA/base2novel", (), bottlenecks(), 674_560),
    (
        "DePT/base2novel",
        (),
        {f"host.{TEXT}": (1, 16, 512), **PROBE},
        8_192 + 2_048 + 513 * CLASSES,
    ),
    (
        "DePT/base2novel_cocoop",
        (),
        conditional("host.") | PROBE,
        35_360 + 2_048 + 513 * CLASSES,
    ),
    (
        "DePT/base2novel_kgcoop",
        (),
        {f"host.{TEXT}": (1, 4, 512), **PROBE},
        2_048 + 2_048 + 513 * CLASSES,
    ),
    (
        "DePT/base2novel_maple",
        (),
        coupled(2, 9, "host.") | PROBE,
        3_555_072 + 2_048 + 513 * CLASSES,
    ),
    (
        "HPT/base2novel",
        (),
        {
            f"{HIERARCHY}input": (7, 512),
            f"{HIERARCHY}general": (11, 2, 512),
            f"{HIERARCHY}entity_scale": (12,),
            f"{HIERARCHY}attribute_scale": (12,),
            **linear(f"{HIERARCHY}projector", 512, 512),
            VISION: (12, 2, 768),
        },
        295_960,
    ),
    ("ProVP/base2novel", (), {VISION: (12, 16, 768)}, 147_456),
    ("ProVP/few_shot", (), {VISION: (12, 50, 768)}, 460_800),
    ("LightRA/base2novel", (), residual(), 122_880),
    ("RAda/base2novel", (), HEAD, 1_575_936),
    ("RAdaPrompt/base2novel", (), {TEXT: (9, 2, 512), VISION: (9, 2, 768), **HEAD}, 1_598_976),
    ("RAdaAdapter/base2novel", (), bottlenecks() | HEAD, 2_250_496),
    ("LightRAda/base2novel", (), residual() | HEAD, 1_698_816),
]


@pytest.mark.parametrize(
    ("method", "options", "shapes", "total"),
    CASES,
    ids=[" ".join([method, *options]) for method, options, *_ in CASES],
)
def test_what_trains_on_vit_b16(make_config, monkeypatch, method, options, shapes, total):
    monkeypatch.setattr(clip, "load", lambda *args, **kwargs: vit_b16())
    # A frozen tower over texts: slow, and its weights are none.
    monkeypatch.setattr(
        trainers.hpt, "end_states", lambda backbone, bank: torch.zeros(len(bank), 11, 512)
    )
    cfg = make_config(method, "DATASET.NUM_SHOTS", "1", *options)
    trained = {n: p for n, p in build_trainer(cfg).model.named_parameters() if p.requires_grad}
    assert {name: tuple(p.shape) for name, p in trained.items()} == shapes
    assert sum(p.numel() for p in trained.values()) == total


def test_the_table_of_results_says_the_same():
    table = (REPOSITORY / "docs" / "results.md").read_text()
    for method, options, _, total in CASES:
        name, protocol = method.split("/")
        if protocol == "base2novel" and not options:
            total = "10,240 + 513 a class" if name == "DePT" else f"{total:,}"
            assert f"| {name} | {total} |" in table
