"""Prompted towers written out without hooks, and what tests of prompted methods share."""

from pathlib import Path

import open_clip
import torch

import clip
from clip.backbones import OPENAI_INPUT, Backbone

SMALL = (
    *("DATASET.NUM_SHOTS", "1", "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", "1"),
    *("DATALOADER.TRAIN_X.BATCH_SIZE", "4"),
)
# Seven, the fewest: to encode the default's 80 texts of each class takes longer than a small run.
FEW_TEMPLATES = tuple(
    word
    for method in (
        *("CLIPAdapterFFT", "CLIPAdapterFT", "FLYP", "FT", "L2SP", "LP", "LPFT", "RAdaFFT"),
        *("RAdaFT", "WiseFT", "ZeroshotCLIP2"),
    )
    for word in (f"TRAINER.{method}.TEMPLATES", "7")
)

# Twelve runs of so many iterations, instead of thousands.
SHORT_GRID = ("TRAINER.CrossModalLP.ITERATIONS", "100")


def plain_text(model, tokens, sets=()):
    """CLIP's text tower over all positions: features, not normalised. ``sets`` of (n, W)."""

    def put(x, vectors):
        n = len(vectors)
        return torch.cat([x[:, :1], vectors.expand(len(x), -1, -1), x[:, 1 + n :]], 1)

    x = model.token_embedding.weight[tokens]
    x = (put(x, sets[0]) if len(sets) else x) + model.positional_embedding
    for i, block in enumerate(model.transformer.resblocks):
        x = block(put(x, sets[i]) if 0 < i < len(sets) else x, attn_mask=model.attn_mask)
    return model.ln_final(x)[range(len(x)), tokens.argmax(-1)] @ model.text_projection


def plain_image(model, image, sets=(), alpha=None):
    """CLIP's vision tower: features, not normalised.

    ``sets`` of (n, W) behind the patches, before ln_pre; with ``alpha`` behind it, and deeper sets
    mixed with that share of what the block before made of the prompts.
    """
    visual = model.visual
    n = len(sets[0]) if len(sets) else 0
    x = visual.conv1(image).flatten(2).transpose(1, 2)
    cls = visual.class_embedding.expand(len(x), 1, -1)
    x = torch.cat([cls, x], 1) + visual.positional_embedding
    first = [sets[0].expand(len(x), -1, -1)] if n else []
    if alpha is None:
        x = visual.ln_pre(torch.cat([x, *first], 1))
    else:  # directly behind the class token
        x = visual.ln_pre(x)
        x = torch.cat([x[:, :1], *first, x[:, 1:]], 1)
    for i, block in enumerate(visual.transformer.resblocks):
        if 0 < i < len(sets) and alpha is None:
            x = torch.cat([x[:, :-n], sets[i].expand(len(x), -1, -1)], 1)
        elif 0 < i < len(sets):
            mixed = (1 - alpha) * sets[i] + alpha * x[:, 1 : 1 + n]
            x = torch.cat([x[:, :1], mixed, x[:, 1 + n :]], 1)
        x = block(x)
    return visual.ln_post(x[:, 0]) @ visual.proj


def coupled(learned, prefix=""):
    """MaPLe's vision prompts, which follow from its text prompts set by set: (n, W) each.

    ``learned`` are values by name, ``prefix`` what stands before "backbone".
    """
    maps = f"{prefix}backbone.vision_prompts.maps"
    return [
        vectors @ learned[f"{maps}.{j}.weight"].T + learned[f"{maps}.{j}.bias"]
        for j, vectors in enumerate(learned[f"{prefix}backbone.text_prompts.vectors"])
    ]


def first_losses(trainer, count: int, after_step=lambda: None) -> list[float]:
    """Losses of the first training steps of an epoch."""
    trainer.set_model_mode("train")
    trainer.num_batches, trainer.epoch = 100, 0
    found = []
    for number, batch in zip(range(count), trainer.train_loader_x, strict=False):
        trainer.batch_idx = number
        found.append(float(trainer.forward_backward(batch)["loss"]))
        after_step()
    return found


def unit(features):
    return features / features.norm(dim=-1, keepdim=True)


def check_step(trainer, expected, image=None):
    """Compare logits, loss, its terms and all gradients with a separate formula, in double.

    Args:
        trainer: Of a method, on Shapes.
        expected: (an untouched CLIP, copies of what trains by name, image, label) -> dict with
            logits, loss and the terms. It runs first.
        image: Pictures, if the method takes them in another form.
    """
    trainer.model.double()
    torch.manual_seed(5)
    parameters = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    for parameter in parameters.values():
        parameter.data += 0.05 * torch.randn_like(parameter)
    copies = {n: p.detach().clone().requires_grad_() for n, p in parameters.items()}
    if image is None:
        image = torch.randn(3, 3, 48, 48, dtype=torch.double)
    label = torch.tensor([0, 5, 19])
    wanted = expected(clip.load("shapes").double().model, copies, image, label)
    trainer.set_model_mode("train")
    out = trainer.forward_loss(image, label)
    assert out.parts.keys() == wanted.keys() - {"logits", "loss"}
    for name, value in {"logits": out.logits, "loss": out.loss, **out.parts}.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-8, atol=1e-9)
    ours = torch.autograd.grad(out.loss, list(parameters.values()))
    theirs = torch.autograd.grad(wanted["loss"], list(copies.values()))
    for name, a, b in zip(copies, ours, theirs, strict=True):
        assert b.abs().max() > 0, name
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9 * float(b.abs().max()), msg=name)


def tokens_of(trainer, text="a photo of a {}."):
    """The classes' prompts, (K, 77)."""
    return clip.tokenize([text.format(name) for name in trainer.dm.dataset.classnames])


def cosine_loss(model, f, h, label):
    """Logits s f h^T of unit features, and their cross entropy."""
    logits = model.logit_scale.exp() * f @ h.T
    return logits, -torch.log_softmax(logits, 1)[range(len(label)), label].mean()


def learning_rates(trainer):
    """The rate of every epoch."""
    rates = []
    for _ in range(trainer.max_epoch):
        rates.append(trainer.get_current_lr())
        for optim in trainer._optims.values():
            optim.step()  # without gradients nothing moves
        trainer.update_lr()
    return rates


def write_released(folder: Path, model_name: str, state, epoch: int) -> str:
    """A checkpoint as Dassl writes it, with a live scheduler in it."""
    path = folder / model_name
    path.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1e-3)
    live = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epoch)
    torch.save(
        {
            "state_dict": state,
            "epoch": epoch,
            "optimizer": optimizer.state_dict(),
            "scheduler": {"successor": live},
            "val_result": None,
        },
        path / f"model.pth.tar-{epoch}",
    )
    return str(folder)


def check_released(source, loaded, folder, epoch: int) -> None:
    """A trainer that loads the released checkpoint of another one's weights becomes that one."""
    image = torch.randn(2, 3, 48, 48)
    before = loaded.model.eval()(image)
    loaded.load_model(folder, epoch=epoch)
    after = loaded.model(image)
    assert torch.equal(after, source.model.eval()(image))
    assert not torch.equal(before, after)
    loaded.test()


def whole_clip(prefix_text="text_encoder.", prefix_image="image_encoder."):
    """Some of the frozen weights that released checkpoints hold beside the prompts."""
    return {
        f"{prefix_text}positional_embedding": torch.randn(77, 512).half(),
        f"{prefix_text}transformer.resblocks.0.ln_1.weight": torch.randn(512),
        f"{prefix_image}class_embedding": torch.randn(768).half(),
        f"{prefix_image}transformer.resblocks.1.ln_2.bias": torch.randn(768),
        "logit_scale": torch.tensor(4.6),
        "prompt_learner.token_prefix": torch.randn(20, 1, 512).half(),
        "prompt_learner.token_suffix": torch.randn(20, 72, 512).half(),
    }


def vit_b16() -> Backbone:
    """ViT-B/16 with the architecture's sizes and memory that nobody has written to."""
    with torch.device("meta"):
        model = open_clip.model.CLIP(
            embed_dim=512,
            vision_cfg=open_clip.model.CLIPVisionCfg(layers=12, width=768, patch_size=16),
            text_cfg=open_clip.model.CLIPTextCfg(width=512, heads=8, layers=12),
            quick_gelu=True,
        )
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        if parameter.ndim < 2 or parameter is model.token_embedding.weight:
            torch.nn.init.zeros_(parameter)
    return Backbone(model, "ViT-B/16", OPENAI_INPUT).requires_grad_(False).eval()
