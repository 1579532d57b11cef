"""Trainers in the styles of repositories written for Dassl: their runs end with their results."""

import json
import os

import pytest
import torch
from tqdm import tqdm

from dassl.engine import TrainerX, build_trainer, read_result
from dassl.engine.build import TRAINER_REGISTRY
from dassl.engine.distributed import WorldSizeError
from dassl.evaluation import EVALUATOR_REGISTRY, Classification, EvaluatorBase, build_evaluator
from tests.dassl.toys import ToyCoOp


class Foreign(ToyCoOp):
    """CoOp's style, with the test that many repositories copy and change."""

    passes = 1  # evaluations per test
    returns = "first"

    @torch.no_grad()
    def test(self, split=None):
        self.set_model_mode("eval")
        if split is None:
            split = self.cfg.TEST.SPLIT
        if split == "val" and self.val_loader is not None:
            data_loader = self.val_loader
        else:
            split = "test"
            data_loader = self.test_loader
        print(f"Evaluate on the *{split}* set")
        found = []
        for number in range(self.passes):
            self.evaluator.reset()
            for batch in tqdm(data_loader, disable=True):
                input, label = self.parse_batch_test(batch)
                output = self.model_inference(input)
                self.evaluator.process(output.roll(number, dims=1), label)
            results = self.evaluator.evaluate()
            for name, value in results.items():
                if name != "matrix":
                    self.write_scalar(f"{split}/{name}", value, self.epoch)
            found.append(results)
        return {
            "first": list(found[0].values())[0],
            "results": found[-1],
            "nothing": None,
            "tuple": tuple(next(iter(results.values())) for results in found),
            "words": "done",
        }[self.returns]


def style(base=Foreign, **members):
    """Return a trainer class with these members; it is registered under a name of its own."""
    name = f"Style{len(TRAINER_REGISTRY)}"
    return TRAINER_REGISTRY.register(type(name, (base,), members))


def run(make_cfg, trainer, output="run", **changes):
    """Train; return the trainer and what is in its result.json, None if there is none."""
    cfg = make_cfg(output, trainer=trainer.__name__, OPTIM__MAX_EPOCH=2, **changes)
    built = build_trainer(cfg)
    built.train()
    return built, read_result(cfg.OUTPUT_DIR)


def evaluate(make_cfg, trainer, directory, output="eval", **changes):
    """Do what --eval-only does."""
    cfg = make_cfg(output, trainer=trainer.__name__, **changes)
    built = build_trainer(cfg)
    built.load_model(directory, epoch=2)
    built.test()
    return built, read_result(cfg.OUTPUT_DIR)


@pytest.mark.parametrize("returns", ["first", "results", "nothing", "tuple", "words"])
def test_a_trainer_with_a_test_of_its_own(make_cfg, returns):
    _, plain = run(make_cfg, style(ToyCoOp), "plain")
    cls = style(returns=returns)
    trained, result = run(make_cfg, cls)
    assert result["metrics"] == plain["metrics"]
    assert result["per_class"] == plain["per_class"]
    assert (result["num_test"], result["eval_only"], result["notes"]) == (12, False, [])
    assert result["durations"]["train"] > 0
    loaded, again = evaluate(make_cfg, cls, trained.output_dir)
    assert again["metrics"] == plain["metrics"]
    assert (again["eval_only"], again["model_dir"], again["load_epoch"]) == (
        True,
        trained.output_dir,
        2,
    )


@pytest.mark.parametrize(
    ("returns", "chosen", "note"),
    [
        ("first", 0, "evaluated 2 times: the result is the one it returned"),
        ("tuple", 0, "evaluated 2 times: the result is the one it returned"),
        ("results", 1, "evaluated 2 times: the result is the one it returned"),
        ("nothing", 1, "evaluated 2 times: the result is the last"),
    ],
)
def test_several_evaluations_in_a_test(make_cfg, returns, chosen, note):
    cls = style(passes=2, returns=returns)
    trained, result = run(make_cfg, cls)
    _, plain = run(make_cfg, style(ToyCoOp), "plain")
    rolled = style(model_inference=lambda self, input: self.model(input).roll(1, dims=1))
    _, shifted = evaluate(make_cfg, rolled, trained.output_dir)
    assert plain["metrics"] != shifted["metrics"]
    expected = (plain, shifted)[chosen]
    assert result["metrics"] == expected["metrics"]
    assert result["per_class"] == expected["per_class"]
    assert result["notes"][0].endswith(note)


def own_count(self, split=None):
    """Count right answers without the evaluator."""
    hits = total = 0
    for batch in self.test_loader:
        input, label = self.parse_batch_test(batch)
        hits += (self.model_inference(input).argmax(1) == label).sum()
        total += len(label)
    return 100.0 * hits / total


def test_a_test_without_the_evaluator(make_cfg, capsys):
    _, plain = run(make_cfg, style(ToyCoOp), "plain")
    cls = style(test=own_count)
    trained, result = run(make_cfg, cls)
    assert result["metrics"] == {"accuracy": pytest.approx(plain["metrics"]["accuracy"])}
    assert (result["per_class"], result["num_test"]) == ([], 12)
    assert "has not used an evaluator: the result is what it returned" in result["notes"][0]
    _, again = evaluate(make_cfg, cls, trained.output_dir)
    assert again["metrics"] == result["metrics"]

    silent = style(test=lambda self, split=None: print("accuracy: 12"))
    capsys.readouterr()
    trained, result = run(make_cfg, silent, "silent")
    assert result is None
    out = capsys.readouterr().out
    assert f"Note: {silent.__name__}.test() has neither used an evaluator nor returned a" in out
    assert "so there is no result.json" in out
    assert os.path.isfile(f"{trained.output_dir}/prompt_learner/model.pth.tar-2")


def test_inherited_bodies_and_mixins(make_cfg):
    class Twice:
        def test(self, split=None):
            super().test(split)
            return super().test(split)

    class Calling(ToyCoOp):
        def test(self, split=None):
            return super().test(split)

    _, plain = run(make_cfg, style(ToyCoOp), "plain")
    for number, bases in enumerate([(Calling,), (Twice, ToyCoOp), (Twice, Foreign)]):
        cls = TRAINER_REGISTRY.register(type(f"Inheriting{number}", bases, {}))
        _, result = run(make_cfg, cls, f"run{number}")
        assert result["metrics"] == plain["metrics"]


def own_loop(self):
    """Dassl's loop, as some repositories repeat it."""
    self.before_train()
    for self.epoch in range(self.start_epoch, self.max_epoch):  # noqa: B020
        self.before_epoch()
        self.run_epoch()
        self.after_epoch()
    self.after_train()


@pytest.mark.parametrize(
    "members",
    [
        {"after_train": lambda self: self.test()},
        {"after_train": lambda self: (print("Finish training"), self.test(split="test"))},
        {"after_train": lambda self: super(Foreign, self).after_train()},
        {"train": own_loop},
        {"train": own_loop, "after_train": lambda self: self.test()},
        {"after_epoch": lambda self: self.test(), "after_train": lambda self: None},
    ],
)
def test_own_ends_of_training(make_cfg, members):
    trained, result = run(make_cfg, style(**members))
    _, plain = run(make_cfg, style(ToyCoOp), "plain", **{"TEST__SPLIT": "test"})
    assert set(result["metrics"]) == set(plain["metrics"])
    assert result["eval_only"] is False
    assert not os.path.exists(f"{trained.output_dir}/resume.pth.tar")
    trained.test()  # later, by hand
    assert read_result(trained.output_dir)["metrics"] == result["metrics"]


def test_a_method_put_on_the_instance(make_cfg):
    def before_train(self):
        super(Foreign, self).before_train()
        self.after_train = self.finish

    seen = []

    def finish(self):
        seen.append((self.num_batches, self.time_start > 0, self.dm.lab2cname[0]))
        self.best_result = torch.tensor(self.test())
        self.close_writer()

    _, result = run(make_cfg, style(before_train=before_train, finish=finish))
    assert result["metrics"]["accuracy"] > 0
    assert seen == [(4, True, "red_square")]


@pytest.mark.parametrize("returns", ["first", "nothing", "tuple"])
def test_best_val_with_a_test_of_its_own(make_cfg, returns):
    trained, result = run(make_cfg, style(returns=returns), TEST__FINAL_MODEL="best_val")
    assert result["split"] == "test"
    assert result["num_test"] == 12
    assert os.path.isfile(f"{trained.output_dir}/prompt_learner/model-best.pth.tar")
    assert 0 <= trained.best_result <= 100
    silent = style(test=lambda self, split=None: None)
    with pytest.raises(ValueError, match=r"best_val.*nor returned a number; set last_step"):
        run(make_cfg, silent, "silent", TEST__FINAL_MODEL="best_val")


def test_several_splits_at_the_end(make_cfg):
    _, plain = run(make_cfg, style(ToyCoOp), "plain")
    for number, splits in enumerate([("test", "val"), ("val", "test")]):

        def after_train(self, splits=splits):
            for split in splits:
                self.test(split=split)

        _, result = run(make_cfg, style(after_train=after_train), f"run{number}")
        assert (result["split"], result["metrics"]) == ("test", plain["metrics"])

    def own_words(self):
        for split in ("base", "new"):
            self.test(split)

    _, result = run(make_cfg, style(after_train=own_words), "words")
    assert (result["split"], result["metrics"]) == ("new", plain["metrics"])
    assert result["notes"] == ["test was not tested: the result is of new"]


def test_validation_images_are_not_the_result(make_cfg):
    _, result = run(make_cfg, style(after_train=lambda self: self.test(split="val")))
    assert result is None
    _, result = run(make_cfg, style(), "val", TEST__SPLIT="val")
    assert (result["split"], result["num_test"]) == ("val", 6)


def test_an_evaluator_of_its_own(make_cfg):
    @EVALUATOR_REGISTRY.register()
    class TopTwo(EvaluatorBase):
        def __init__(self, cfg, lab2cname=None, **kwargs):
            super().__init__(cfg)

        def reset(self):
            self.hits = []

        def process(self, mo, gt):
            self.hits += (mo.topk(2, dim=1).indices == gt[:, None]).any(1).tolist()

        def evaluate(self):
            top2 = 100.0 * sum(self.hits) / len(self.hits)
            return {"top2": torch.tensor(top2), "matrix": [[1, 2]], "seen": len(self.hits)}

    @EVALUATOR_REGISTRY.register()
    class Duck:
        """Not derived from anything."""

        def __init__(self, cfg, lab2cname=None):
            self.inner = Classification(cfg, lab2cname)
            self.reset, self.process = self.inner.reset, self.inner.process

        def evaluate(self):
            return {"error_rate": self.inner.evaluate()["error_rate"]}

    for number, cls in enumerate([style(ToyCoOp), style(), style(returns="nothing")]):
        _, result = run(make_cfg, cls, f"top{number}", TEST__EVALUATOR="TopTwo")
        assert 50 < result["metrics"]["top2"] <= 100
        assert result["metrics"]["accuracy"] == result["metrics"]["top2"]
        assert (result["metrics"]["seen"], result["num_test"]) == (12, 12)
        assert "no numbers, so not in the result: matrix" in result["notes"]
        assert "the evaluator gives no accuracy; what is called so is its top2" in result["notes"]
    plain, _ = run(make_cfg, style(ToyCoOp), "plain")
    with open(f"{plain.output_dir}/result.json", encoding="utf-8") as file:
        expected = json.load(file)["metrics"]["error_rate"]
    for number in range(2):
        _, result = run(make_cfg, style(returns="nothing"), f"duck{number}", TEST__EVALUATOR="Duck")
        assert result["metrics"] == {"accuracy": expected, "error_rate": expected}
        assert result["notes"] == [
            "the evaluator gives no accuracy; what is called so is its error_rate"
        ]


def test_an_evaluator_made_inside_of_the_test(make_cfg):
    def test(self, split=None):
        evaluator = build_evaluator(self.cfg, lab2cname=self.lab2cname)
        for batch in self.test_loader:
            input, label = self.parse_batch_test(batch)
            evaluator.process(self.model_inference(input), label)
        evaluator.evaluate()

    _, plain = run(make_cfg, style(ToyCoOp), "plain")
    _, result = run(make_cfg, style(test=test))
    assert result["metrics"] == plain["metrics"]
    assert result["per_class"] == plain["per_class"]


def test_weights_that_are_loaded_while_the_model_is_built(make_cfg):
    trained, _ = run(make_cfg, style())

    def build_model(self):
        super(Foreign, self).build_model()
        self.load_model(trained.output_dir, epoch=2)

    cls = style(build_model=build_model)
    built = build_trainer(make_cfg("started", trainer=cls.__name__))
    assert built.identity.loaded_from == (trained.output_dir, 2)
    assert torch.equal(built.model.prompt_learner.ctx, trained.model.prompt_learner.ctx)


def test_a_failing_test_leaves_no_result(make_cfg):
    def test(self, split=None):
        raise RuntimeError("my own mistake")

    cls = style(test=test)
    with pytest.raises(RuntimeError, match="my own mistake"):
        run(make_cfg, cls)
    cfg = make_cfg("other", trainer=cls.__name__)
    trainer = build_trainer(cfg)
    for _ in range(2):  # the first failure leaves nothing open
        with pytest.raises(RuntimeError, match="my own mistake"):
            trainer.test()
    assert read_result(cfg.OUTPUT_DIR) is None


def test_what_other_repositories_use_of_a_trainer(make_cfg):
    class Using(ToyCoOp):
        def before_epoch(self):
            assert isinstance(self, TrainerX)
            assert self.start_epoch == 0
            assert os.fspath(self.output_dir)
            assert list(self._models) == list(self._optims) == list(self._scheds)
            self._writer.add_scalar("mine", 1.0, self.epoch)
            assert self.get_current_lr() > 0

    trained, result = run(make_cfg, style(Using))
    assert result["metrics"]["accuracy"] > 0
    assert trained.evaluator._total == 12


def test_several_processes_cannot_share_a_test_of_its_own(make_cfg, monkeypatch):
    cls = style()
    trainer = build_trainer(make_cfg(trainer=cls.__name__))
    monkeypatch.setattr("dassl.engine.overrides.world_size", lambda: 2)
    with pytest.raises(WorldSizeError, match=rf"{cls.__name__} has a test\(\) of its own"):
        trainer.test()
    assert read_result(trainer.output_dir) is None
