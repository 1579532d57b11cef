"""Runs whose prompts are a start of test-time training, made without training."""

from __future__ import annotations

import torch

import clip
from dassl.data.samplers.epochs import SeededIndex
from dassl.engine import build_trainer
from tests.trainers.baselines import around_names
from tests.trainers.plain import unit

VIEWS = ("VIEWS", "4", "SELECT", "0.5")  # 2 of 4 views are kept
# The datasets on which TPT uses AugMix and PromptAlign a smaller learning rate.
FINE_GRAINED = ("caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101",
                "fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101")  # fmt: skip


def views_options(name: str) -> list[str]:
    """Options of a method for few views."""
    return [f"TRAINER.{name}.{w}" if w.isupper() else w for w in VIEWS]


def views_of(trainer, rows) -> torch.Tensor:
    """Views of some test images, (N, V, 3, H, W)."""
    return torch.stack([trainer.test_loader.dataset[SeededIndex(row, 1)]["img"] for row in rows])


def make_run(make_config, method: str, *options: str, seed: int = 3, output: str | None = None):
    """A finished run of a method with prompts that are not where they started."""
    # No images of the source are needed, but their draw is.
    cfg = make_config(
        f"{method}/cross_dataset", "DATASET.NUM_SHOTS", "1", *options, output=output or method
    )
    trainer = build_trainer(cfg)
    torch.manual_seed(seed)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    trainer.save_model(0, trainer.output_dir)
    trainer.evaluator.process(torch.eye(40)[:2], torch.tensor([0, 1]))
    found = trainer.evaluator.evaluate()
    trainer.record.add_test("test", found, trainer.evaluator.per_class(), 0.0)
    return trainer


def record_gradients(monkeypatch) -> list[list[torch.Tensor]]:
    """Gradients of every step of AdamW from now on, in the order of the parameters."""
    found: list[list[torch.Tensor]] = []

    class Recording(torch.optim.AdamW):
        def step(self, closure=None):
            found.append([p.grad.clone() for g in self.param_groups for p in g["params"]])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Recording)
    return found


def entropy_of_mean(logits: torch.Tensor) -> torch.Tensor:
    """(S, K) -> a scalar."""
    p = logits.softmax(-1).mean(0)
    return -(p * p.log()).sum()


def least_entropy(logits: torch.Tensor, count: int) -> torch.Tensor:
    """Numbers of the ``count`` surest rows."""
    p = logits.softmax(-1)
    return (-(p * p.log()).sum(-1)).argsort()[:count]


def steps_by_hand(values: list[torch.Tensor], loss, *, steps: int, lr: float) -> list:
    """AdamW as the paper has it, on leaves; returns the gradients of each step."""
    found = []
    moments = [(torch.zeros_like(v), torch.zeros_like(v)) for v in values]
    for t in range(1, steps + 1):
        grads = torch.autograd.grad(loss(values), values)
        found.append(list(grads))
        with torch.no_grad():
            for value, grad, (m, v) in zip(values, grads, moments, strict=True):
                m.mul_(0.9).add_(0.1 * grad)
                v.mul_(0.999).add_(0.001 * grad**2)
                value.mul_(1 - lr * 0.01)
                value -= lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return found


def context_by_hand(trainer, f, start, steps):
    """TPT's episode of one image, with the text encoder written out.

    Args:
        trainer: Of TPT, for its class names; it keeps 2 views.
        f: Features of the views, unit norm, (V, D), in double precision.
        start: Context, (M, W).
        steps: Of AdamW.

    Returns:
        Logits (K,), the gradients of each step, and the adapted context.
    """
    model, names = clip.load("shapes").double().model, trainer.dm.dataset.classnames
    scale = model.logit_scale.exp()
    context = start.detach().clone().requires_grad_()

    def classify(x):
        return scale * x @ unit(around_names(model, names, len(context), context)).T

    chosen = f[least_entropy(classify(f), 2)]
    grads = steps_by_hand(
        [context], lambda _: entropy_of_mean(classify(chosen)), steps=steps, lr=5e-3
    )
    return classify(f[:1])[0].detach(), grads, context.detach()
