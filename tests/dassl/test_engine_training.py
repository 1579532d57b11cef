"""Training, testing, logging and results of both styles of trainer."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dassl.config import config_hash
from dassl.engine import StepOutput, TrainerBase, build_trainer, device, is_done, read_result
from dassl.utils import set_random_seed
from tests.dassl.toys import ToyCoOp, ToyMethod, ToyModel


def test_coop_style_trainer_runs_unmodified(make_cfg, capsys):
    cfg = make_cfg(trainer="ToyCoOp", OPTIM__MAX_EPOCH=6, TRAIN__CHECKPOINT_FREQ=2)
    set_random_seed(cfg.SEED)
    trainer = build_trainer(cfg)
    start = trainer.model.image_encoder.weight.clone()
    trainer.train()
    log = capsys.readouterr().out
    assert torch.equal(trainer.model.image_encoder.weight, start)
    assert trainer.model.prompt_learner.ctx.abs().sum() > 0
    result = read_result(cfg.OUTPUT_DIR)
    assert result["metrics"]["accuracy"] > 60  # chance is 33.3
    assert re.search(r"\* accuracy: [\d.]+%", log)
    from pathlib import Path

    names = {p.name for p in (Path(cfg.OUTPUT_DIR) / "prompt_learner").iterdir()}
    assert names == {"model.pth.tar-2", "model.pth.tar-4", "model.pth.tar-6", "checkpoint"}

    cfg_eval = make_cfg("eval", trainer="ToyCoOp")
    again = build_trainer(cfg_eval)
    again.load_model(cfg.OUTPUT_DIR, epoch=6)
    assert again.test() == pytest.approx(result["metrics"]["accuracy"])
    assert read_result(cfg_eval.OUTPUT_DIR)["eval_only"] is True


def test_our_style_learns_and_touches_only_what_trains(make_cfg):
    cfg = make_cfg(OPTIM__MAX_EPOCH=8, OPTIM__LR=0.2)
    trainer = build_trainer(cfg)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.train()
    changed = {k for k, v in trainer.model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {
        "head.weight",
        "head.bias",
        "head_norm.weight",
        "head_norm.bias",
        "head_norm.running_mean",
        "head_norm.running_var",
        "head_norm.num_batches_tracked",
    }  # in particular, no statistics of the frozen norm
    assert read_result(cfg.OUTPUT_DIR)["metrics"]["accuracy"] > 60


def test_log_lines_are_dassls(make_cfg, capsys):
    build_trainer(make_cfg(DATALOADER__TRAIN_X__BATCH_SIZE=3)).train()
    out, err = capsys.readouterr()
    line = (
        r"^epoch \[1/3\] batch \[2/6\] time \d\.\d{3} \(\d\.\d{3}\) data \d\.\d{3} \(\d\.\d{3}\) "
        r"loss \d\.\d{4} \(\d\.\d{4}\) acc \d+\.\d{4} \(\d+\.\d{4}\) average \S+ \S+ "
        r"lr 1\.0000e-05 eta \d:\d\d:\d\d$"
    )
    assert re.search(line, out, re.MULTILINE)
    # the rate is printed after the epoch's last step, as Dassl does
    assert re.search(r"^epoch \[1/3\] batch \[6/6\] .* lr 5\.0000e-02 ", out, re.MULTILINE)
    order = [
        "Finish training",
        "Deploy the last-epoch model",
        "Evaluate on the *test* set",
        "=> result",
        "* total: 12",
        "* correct: ",
        "* accuracy: ",
        "* error: ",
        "* macro_f1: ",
        "Elapsed: 0:00:",
    ]
    positions = [out.index(text) for text in order]
    assert positions == sorted(positions)
    assert "it/s" not in out


@pytest.mark.parametrize(("frequency", "batches"), [(4, [3, 5]), (6, [5]), (7, range(6)), (0, [])])
def test_scalars_are_those_of_the_log_and_of_the_last_batch(
    make_cfg, capsys, monkeypatch, frequency, batches
):
    cfg = make_cfg(DATALOADER__TRAIN_X__BATCH_SIZE=3, TRAIN__PRINT_FREQ=frequency)
    written = {}
    monkeypatch.setattr(
        ToyMethod, "write_scalar", lambda _, tag, value, step: written.update({(tag, step): value})
    )
    build_trainer(cfg).train()
    steps = sorted(step for tag, step in written if tag == "train/loss")
    assert steps == [6 * epoch + batch for epoch in range(3) for batch in batches]
    logged = re.findall(
        r"^epoch \[(\d)/3\] batch \[(\d)/6\].* loss \S+ \((\S+)\)", capsys.readouterr().out, re.M
    )
    for epoch, batch, mean in logged:
        step = 6 * (int(epoch) - 1) + int(batch) - 1
        assert written["train/loss", step] == pytest.approx(float(mean), abs=1e-4)
        assert ("train/lr", step) in written
    assert len(logged) == 3 * (6 // frequency if 0 < frequency <= 6 else len(batches))


def test_result_json(make_cfg):
    cfg = make_cfg(SEED=0, DATASET__NUM_SHOTS=2)
    trainer = build_trainer(cfg)
    assert not is_done(cfg.OUTPUT_DIR, config_hash(cfg))
    trainer.train()
    with open(f"{cfg.OUTPUT_DIR}/result.json", encoding="utf-8") as file:
        result = json.load(file)
    expected = {
        "format": 1,
        "status": "complete",
        "trainer": "ToyMethod",
        "dataset": "ToySquares",
        "backbone": "",
        "seed": 0,
        "shots": 2,
        "subsample_classes": "all",
        "split": "test",
        "num_test": 12,
        "num_classes": 3,
        "config_hash": config_hash(cfg),
        "device": "cpu",
        "precision": "fp32",
        "trainable_parameters": 16 * 3 + 3 + 32,
        "eval_only": False,
        "model_dir": "",
        "load_epoch": None,
        "chance": pytest.approx(100 / 3),
    }
    assert {key: result[key] for key in expected} == expected
    assert set(result["metrics"]) == {"accuracy", "error_rate", "macro_f1"}
    rows = result["per_class"]
    assert [(row["label"], row["name"], row["total"]) for row in rows] == [
        (0, "red_square", 4),
        (1, "green square", 4),
        (2, "blue square", 4),
    ]
    mean = np.mean([row["accuracy"] for row in rows])
    assert mean == pytest.approx(result["metrics"]["accuracy"])
    assert result["config"]["OPTIM"]["LR"] == 0.05
    assert set(result["versions"]) == {"python", "torch", "torchvision", "open_clip", "numpy"}
    assert set(result["git"]) == {"revision", "dirty"}
    assert set(result["durations"]) == {"train", "test", "total"}
    assert result["peak_memory_mb"] > 10
    assert re.fullmatch(r"[0-9a-f]{64}", result["split_hash"])
    assert is_done(cfg.OUTPUT_DIR, config_hash(cfg))
    assert not is_done(cfg.OUTPUT_DIR, "0" * 16)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"format": 1}', '{"format": 1, "status": "running", "metrics": {}}'],
)
def test_damaged_results_do_not_count(tmp_path, content):
    assert read_result(tmp_path) is None
    (tmp_path / "result.json").write_text(content)
    assert read_result(tmp_path) is None
    assert not is_done(tmp_path, "x")


def test_split_hash_does_not_depend_on_place_but_on_the_draw(make_cfg, tmp_path, toy_root):
    import shutil

    from dassl.engine.result import split_hash

    def of(cfg):
        trainer = build_trainer(cfg)
        data = trainer.dm.dataset
        return split_hash(cfg.DATASET.ROOT, data.train_x, data.test)

    moved = tmp_path / "elsewhere"
    shutil.copytree(toy_root, moved)
    first = of(make_cfg(DATASET__NUM_SHOTS=2))
    assert of(make_cfg(root=moved, DATASET__NUM_SHOTS=2)) == first
    assert of(make_cfg(SEED=3, DATASET__NUM_SHOTS=2)) != first


def test_seed_zero_is_a_seed_and_minus_one_is_recorded(make_cfg):
    def weights(seed):
        trainer = build_trainer(make_cfg(SEED=seed))
        return trainer.model.head.weight.detach().clone(), trainer

    torch.manual_seed(5)
    first = weights(0)[0]
    torch.manual_seed(6)
    assert torch.equal(weights(0)[0], first)
    assert not torch.equal(weights(1)[0], first)
    _, drawn = weights(-1)
    assert drawn.seed >= 0
    drawn.train()
    assert read_result(drawn.output_dir)["seed"] == drawn.seed
    repeat = weights(drawn.seed)[1]
    repeat.train()
    for key, value in repeat.model.state_dict().items():
        assert torch.equal(value, drawn.model.state_dict()[key])


class FrozenMethod(ToyMethod):
    def build_model(self):
        return ToyModel(self.num_classes).requires_grad_(False)


def test_nothing_to_train_goes_straight_to_the_test(make_cfg, capsys):
    cfg = make_cfg()
    trainer = FrozenMethod(cfg)
    trainer.load_model("/nowhere", epoch=3)
    trainer.train()
    result = read_result(cfg.OUTPUT_DIR)
    assert result["trainable_parameters"] == 0
    assert "epoch [" not in capsys.readouterr().out


class DivergingMethod(ToyMethod):
    def forward_loss(self, image, label):
        out = super().forward_loss(image, label)
        if (self.epoch, self.batch_idx) == (1, 2):
            return StepOutput(out.loss * float("nan"))
        return out


def test_a_loss_that_is_not_finite_stops_before_any_damage(make_cfg, tmp_path):
    cfg = make_cfg(TRAIN__CHECKPOINT_FREQ=1)
    trainer = DivergingMethod(cfg)
    with pytest.raises(FloatingPointError, match=r"epoch 2, batch 3, at learning rate 5\.0000e-02"):
        trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    names = sorted(p.name for p in (tmp_path / "run" / "DivergingMethod").iterdir())
    assert names == ["checkpoint", "model.pth.tar-1"]
    assert read_result(cfg.OUTPUT_DIR) is None


def test_weights_that_are_not_finite_are_not_saved(make_cfg, tmp_path):
    trainer = build_trainer(make_cfg())
    trainer.save_model(0, trainer.output_dir)
    path = tmp_path / "run" / "ToyMethod" / "model.pth.tar-1"
    before = path.read_bytes()
    with torch.no_grad():
        trainer.model.head.bias[0] = float("inf")
    with pytest.raises(FloatingPointError, match="head.bias"):
        trainer.save_model(0, trainer.output_dir)
    assert path.read_bytes() == before


def test_nan_logits_are_no_result(make_cfg):
    trainer = build_trainer(make_cfg())
    with torch.no_grad():
        trainer.model.head.bias[0] = float("nan")
    with pytest.raises(FloatingPointError, match="NaN"):
        trainer.test()


def test_caches_are_dropped_on_every_step_and_load(make_cfg):
    seen = []

    class Watching(ToyMethod):
        def forward_loss(self, image, label):
            seen.append(self.model.cached)
            return super().forward_loss(image, label)

    trainer = Watching(make_cfg(OPTIM__MAX_EPOCH=1))
    trainer.train()
    assert seen
    assert set(seen) == {0}
    assert trainer.model.cached > 0  # the test filled it
    trainer.load_model(trainer.output_dir, epoch=1)
    assert trainer.model.cached == 0


def test_bf16_autocast_on_the_cpu(make_cfg, capsys):
    dtypes = []

    class Watching(ToyMethod):
        config_section = "ToyMethod"

        def forward_loss(self, image, label):
            out = super().forward_loss(image, label)
            dtypes.append(out.logits.dtype)
            return out

    trainer = Watching(make_cfg(TRAINER__ToyMethod__PREC="bf16"))
    trainer.train()
    assert set(dtypes) == {torch.bfloat16}
    assert trainer.model.head.weight.dtype == torch.float32
    assert trainer.scaler is None
    assert read_result(trainer.output_dir)["precision"] == "bf16"


@pytest.mark.parametrize("precision", ["fp16", "amp"])
def test_precision_the_device_lacks_falls_back_and_says_so_once(make_cfg, capsys, precision):
    trainer = build_trainer(make_cfg(TRAINER__ToyMethod__PREC=precision))
    assert trainer.precision == "fp32"
    trainer.train()
    message = f"precision {precision} is not available on cpu; fp32 is used instead"
    assert capsys.readouterr().out.count(message) == 1
    result = read_result(trainer.output_dir)
    assert result["precision"] == "fp32"
    assert message in result["notes"]


def test_the_class_line_is_dassls_three():
    """What else the engine knows is in objects that a trainer holds."""
    line = [cls.__name__ for cls in ToyMethod.__mro__]
    assert line == ["ToyMethod", "TrainerX", "SimpleTrainer", "TrainerBase", "object"]


def test_precision_is_resolved_once(make_cfg, count_calls):
    asked = count_calls(device, "requested_precision")
    trainer = build_trainer(make_cfg())
    built = len(asked)
    trainer.train()
    assert len(asked) == built > 0


def test_unknown_precision_is_refused(make_cfg):
    with pytest.raises(ValueError, match=r"TRAINER\.ToyMethod\.PREC.*'fp8'.*bf16"):
        build_trainer(make_cfg(TRAINER__ToyMethod__PREC="fp8"))


@pytest.mark.parametrize(
    ("device", "use_cuda", "message"),
    [
        ("gpu", True, "must be auto, cpu, cuda"),
        ("cuda", False, "USE_CUDA is False"),
        ("cuda:99", True, "sees"),
    ],
)
def test_impossible_devices_are_refused(make_cfg, device, use_cuda, message):
    with pytest.raises(ValueError, match=message):
        build_trainer(make_cfg(DEVICE=device, USE_CUDA=use_cuda))


def test_best_val_keeps_the_best_epoch_and_needs_validation_images(make_cfg):
    scores = iter([50.0, 90.0, 70.0])

    class Scripted(ToyMethod):
        def test(self, split=None):
            real = super().test(split)
            return next(scores) if split == "val" else real

    cfg = make_cfg(TEST__FINAL_MODEL="best_val")
    trainer = Scripted(cfg)
    trainer.train()
    best = torch.load(f"{cfg.OUTPUT_DIR}/Scripted/model-best.pth.tar", weights_only=True)
    assert (best["epoch"], best["val_result"]) == (2, 90.0)
    assert torch.equal(best["state_dict"]["head.weight"], trainer.model.head.weight)
    with open(f"{cfg.OUTPUT_DIR}/Scripted/checkpoint") as file:
        assert file.read() == "model.pth.tar-3\n"

    class NoVal(ToyMethod):
        def build_data_loader(self):
            super().build_data_loader()
            self.val_loader = None

    with pytest.raises(ValueError, match="no validation images"):
        NoVal(cfg)
    assert NoVal(make_cfg("other")).val_loader is None


def test_gradient_clipping_and_per_step_schedule(make_cfg):
    rates = []

    class Watching(ToyMethod):
        def forward_loss(self, image, label):
            rates.append(self.get_current_lr())
            return super().forward_loss(image, label)

        def model_update(self, names=None):
            super().model_update(names)
            grads = [p.grad for p in self.model.parameters() if p.grad is not None]
            norms.append(torch.cat([g.flatten() for g in grads]).norm().item())

    norms = []
    cfg = make_cfg(
        OPTIM__LR_SCHEDULER="cosine_step", OPTIM__WARMUP_STEP=2, OPTIM__MAX_GRAD_NORM=0.01
    )
    trainer = Watching(cfg)
    trainer.train()
    total = 3 * trainer.num_batches
    expected = [0.025, 0.05] + [
        0.025 * (1 + np.cos(np.pi * i / (total - 2))) for i in range(total - 2)
    ]
    assert rates == pytest.approx(expected)
    assert max(norms) == pytest.approx(0.01, rel=1e-3)


def test_param_groups_hook_gives_layers_their_own_rates(make_cfg):
    class TwoRates(ToyMethod):
        def param_groups(self, module):
            return [
                {"params": module.head.parameters(), "lr": 0.5},
                {"params": module.head_norm.parameters()},
                {"params": module.features.parameters()},
            ]

    trainer = TwoRates(make_cfg(OPTIM__WARMUP_EPOCH=-1))
    groups = trainer._optims["TwoRates"].param_groups
    assert [group["lr"] for group in groups] == [0.5, 0.05]  # the frozen group is left out
    trainer.train()
    assert [group["lr"] for group in groups] == [0.0, 0.0]


def test_foreign_scaler_and_wrong_names(make_cfg):
    trainer = ToyCoOp(make_cfg(trainer="ToyCoOp"))
    with pytest.raises(ValueError, match="already registered"):
        trainer.register_model("prompt_learner", nn.Linear(1, 1))
    with pytest.raises(ValueError, match="Did you mean 'prompt_learner'"):
        trainer.get_model_names("promptlearner")
    with pytest.raises(ValueError, match="mode must be"):
        trainer.set_model_mode("training")
    with pytest.raises(ValueError, match="Did you mean 'ToyCoOp'"):
        build_trainer(make_cfg(trainer="ToyCoop"))
    trainer.register_generator("a")
    with pytest.raises(ValueError, match="already registered"):
        trainer.register_generator("a")


def test_the_base_class_alone_trains_registered_models():
    model = nn.Linear(2, 1)
    before = model.weight.clone()
    trainer = TrainerBase()
    trainer.register_model("one", model, torch.optim.SGD(model.parameters(), lr=0.5))
    trainer.register_model("frozen", nn.Linear(1, 1))
    with pytest.raises(FloatingPointError, match="infinite or NaN"):
        trainer.model_backward_and_update(model(torch.full((1, 2), float("nan"))).sum())
    assert torch.equal(model.weight, before)
    trainer.model_backward_and_update(model(torch.ones(1, 2)).sum())
    torch.testing.assert_close(model.weight, before - 0.5)
    assert (trainer.get_current_lr(), trainer.get_current_lr("frozen")) == (0.5, 0.0)
    trainer.update_lr()


def test_generators_follow_from_seed_and_name(make_cfg):
    def draw(seed, name):
        trainer = build_trainer(make_cfg(SEED=seed))
        return torch.rand(4, generator=trainer.register_generator(name))

    assert torch.equal(draw(1, "a"), draw(1, "a"))
    assert not torch.equal(draw(1, "a"), draw(1, "b"))
    assert not torch.equal(draw(1, "a"), draw(2, "a"))


def test_plain_loss_matches_a_hand_written_loop(make_cfg):
    """The engine's step is zero_grad, backward, SGD step: compare with writing that out."""

    class Plain(ToyMethod):
        def forward_loss(self, image, label):
            self.batches.append((image, label))
            logits = self.model.head(image.flatten(1)[:, :16])
            return StepOutput(F.cross_entropy(logits, label), logits)

    trainer = Plain(make_cfg(OPTIM__WARMUP_EPOCH=-1))
    trainer.batches = []
    head = nn.Linear(16, 3)
    head.load_state_dict(trainer.model.head.state_dict())
    trainer.train()
    optim = torch.optim.SGD(head.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    per_epoch = len(trainer.batches) // 3
    for step, (image, label) in enumerate(trainer.batches):
        optim.param_groups[0]["lr"] = 0.025 * (1 + np.cos(np.pi * (step // per_epoch) / 3))
        optim.zero_grad()
        F.cross_entropy(head(image.flatten(1)[:, :16]), label).backward()
        optim.step()
    torch.testing.assert_close(trainer.model.head.weight, head.weight)


def test_a_broken_tensorboard_is_told_and_the_run_goes_on(capsys, monkeypatch):
    class Broken:
        def __getattr__(self, name):
            raise TypeError("Descriptors cannot be created directly")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", Broken())
    trainer = TrainerBase()
    trainer.init_writer("nowhere")
    trainer.write_scalar("loss", 1.0)
    trainer.write_scalar("loss", 2.0)
    said = "TensorBoard is not installed (Descriptors cannot be created directly)"
    assert capsys.readouterr().out == f"{said}: scalars are in the log only\n"
