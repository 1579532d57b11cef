"""Metrics by hand-computed numbers, Dassl's lines, files."""

import pytest
import torch

from dassl.config import get_cfg_default
from dassl.evaluation import EVALUATOR_REGISTRY, Classification, EvaluatorBase, build_evaluator
from dassl.evaluation.evaluator import mean_f1
from dassl.metrics import compute_accuracy


def logits(predictions, classes=3):
    return torch.nn.functional.one_hot(torch.tensor(predictions), classes).float()


def evaluator(tmp_path, **test):
    cfg = get_cfg_default()
    cfg.VERBOSE = False
    cfg.OUTPUT_DIR = str(tmp_path)
    for key, value in test.items():
        cfg.TEST[key] = value
    return build_evaluator(cfg, lab2cname={0: "a", 1: "b", 2: "c"})


@pytest.fixture(params=["at once", "late"])
def reading(request):
    """Both ways of counting: at once, as on a CPU, and late, as on a GPU."""
    if request.param == "late":
        request.getfixturevalue("late_reading")


@pytest.mark.usefixtures("reading")
def test_results_and_lines(tmp_path, capsys):
    ev = evaluator(tmp_path, PER_CLASS_RESULT=True, COMPUTE_CMAT=True)
    assert isinstance(ev, Classification)
    ev.process(logits([0, 0, 1]), torch.tensor([0, 0, 0]))
    ev.process(logits([1, 2, 0]), torch.tensor([1, 1, 1]))
    results = ev.evaluate()
    # F1 of class 0: precision 2/3, recall 2/3; of class 1: precision 1/2, recall 1/3
    assert results["macro_f1"] == pytest.approx(100 * (2 / 3 + 0.4) / 2)
    assert list(results)[0] == "accuracy"
    assert results["accuracy"] == pytest.approx(50.0)
    assert results["error_rate"] == pytest.approx(50.0)
    assert results["perclass_accuracy"] == pytest.approx(50.0)
    out = capsys.readouterr().out
    assert (
        "=> result\n* total: 6\n* correct: 3\n* accuracy: 50.00%\n* error: 50.00%\n"
        "* macro_f1: 53.33%\n" in out
    )
    assert "* class: 0 (a)\ttotal: 3\tcorrect: 2\tacc: 66.67%" in out
    assert "* average: 50.00%" in out
    matrix = torch.load(tmp_path / "cmat.pt", weights_only=True)
    assert matrix[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert [row["correct"] for row in ev.per_class()] == [2, 1]
    ev.reset()
    with pytest.raises(ValueError, match="no test image"):
        ev.evaluate()


def test_mean_f1_is_scikit_learns_to_the_bit():
    from sklearn.metrics import f1_score

    generator = torch.Generator().manual_seed(0)
    for classes in (2, 7, 101):  # 300 images: of 101 classes, some have none
        labels, predictions = torch.randint(classes, (2, 300), generator=generator).tolist()
        labels[:5] = [0] * 5  # so that there are more of one class
        present = sorted(set(labels))
        expected = f1_score(labels, predictions, average="macro", labels=present)
        assert mean_f1(labels, predictions) == expected


@pytest.mark.usefixtures("reading")
def test_thousands_are_separated(tmp_path, capsys):
    ev = evaluator(tmp_path)
    ev.process(logits([0] * 1692), torch.tensor([0] * 1437 + [1] * 255))
    ev.evaluate()
    out = capsys.readouterr().out
    assert "* total: 1,692\n* correct: 1,437\n* accuracy: 84.93%" in out


def test_nan_is_refused_but_masked_classes_are_fine(tmp_path):
    ev = evaluator(tmp_path)
    masked = logits([1])
    masked[0, 2] = -float("inf")
    ev.process(masked, torch.tensor([1]))
    with pytest.raises(FloatingPointError):
        ev.process(masked * float("nan"), torch.tensor([1]))


@pytest.mark.parametrize(
    "look",
    [
        lambda ev: ev.evaluate(),
        lambda ev: ev.gather(),
        lambda ev: ev._correct,
        lambda ev: ev.process(logits([1]), torch.tensor([1])),  # one batch too many
    ],
)
def test_a_late_nan_is_no_result(tmp_path, late_reading, monkeypatch, look):
    monkeypatch.setattr("dassl.evaluation.evaluator.MOST_WAITING", 3)
    ev = evaluator(tmp_path)
    ev.process(logits([1]) * float("nan"), torch.tensor([1]))
    ev.process(logits([1]), torch.tensor([1]))
    with pytest.raises(FloatingPointError, match="contain NaN"):
        look(ev)
    ev.reset()
    ev.process(logits([1, 0]), torch.tensor([1, 1]))
    assert ev.evaluate()["accuracy"] == 50.0


def test_batches_wait_for_one_transfer(tmp_path, late_reading, monkeypatch):
    ev = evaluator(tmp_path)
    counted = []
    monkeypatch.setattr(ev, "_count", lambda *batch: counted.append(batch))
    ev.process(logits([0, 0, 1]), torch.tensor([0, 1, 1]))
    ev.process(logits([2]), torch.tensor([1]))
    assert not counted
    ev.count_waiting()
    assert counted == [([0, 1, 1], [0, 0, 1], False), ([1], [2], False)]


def test_an_evaluator_that_forgets_by_itself_counts_all_the_same(tmp_path, late_reading):
    class Own(Classification):
        """Its reset is Dassl's, word for word."""

        def reset(self):
            self._correct = 0
            self._total = 0
            self._y_true = []
            self._y_pred = []
            self._per_class_res = None

    own = Own(evaluator(tmp_path).cfg)
    own.process(logits([0, 1]), torch.tensor([0, 0]))
    assert own.evaluate()["accuracy"] == 50.0


def test_foreign_evaluators(tmp_path):
    @EVALUATOR_REGISTRY.register()
    class Mine(EvaluatorBase):
        def __init__(self, cfg, lab2cname=None, **kwargs):
            super().__init__(cfg)

    assert isinstance(evaluator(tmp_path, EVALUATOR="Mine"), Mine)
    with pytest.raises(ValueError, match="Did you mean 'Classification'"):
        evaluator(tmp_path, EVALUATOR="Clasification")


def test_compute_accuracy():
    output = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [3.0, 1.0, 2.0]])
    target = torch.tensor([0, 1, 1, 1])
    top1, top2 = compute_accuracy(output, target, topk=(1, 2))
    assert (top1.item(), top2.item()) == (50.0, 75.0)
    assert compute_accuracy((output, None), target)[0].item() == 50.0
    assert top1.shape == (1,)


@pytest.mark.usefixtures("reading")
def test_the_counts_have_dassls_names(tmp_path):
    class TopTwo(Classification):
        """Changes process as subclasses for Dassl do."""

        def process(self, mo, gt):
            matches = (mo.topk(2, dim=1).indices == gt[:, None]).any(dim=1)
            self._correct += int(matches.sum())
            self._total += gt.shape[0]
            self._y_true.extend(gt.tolist())
            self._y_pred.extend(mo.argmax(dim=1).tolist())
            if self._per_class_res is not None:
                for label, match in zip(gt.tolist(), matches.tolist(), strict=True):
                    self._per_class_res[label].append(int(match))

    scores = torch.tensor([[3.0, 2, 1], [1, 2, 3], [1, 2, 3], [3, 2, 1]])
    labels = torch.tensor([0, 1, 0, 1])
    plain = evaluator(tmp_path, PER_CLASS_RESULT=True)
    plain.process(scores, labels)
    assert (plain._correct, plain._total) == (1, 4)
    assert dict(plain._per_class_res) == {0: [1, 0], 1: [0, 0]}
    plain.reset()
    assert (plain._correct, plain._total, dict(plain._per_class_res)) == (0, 0, {})
    assert evaluator(tmp_path)._per_class_res is None
    changed = TopTwo(plain.cfg, {0: "a", 1: "b"})
    changed.process(scores, labels)
    results = changed.evaluate()
    assert (results["accuracy"], results["perclass_accuracy"]) == (75.0, 75.0)
    assert [row["correct"] for row in changed.per_class()] == [1, 2]
    assert results["macro_f1"] == pytest.approx(100 * (2 / 4 + 0) / 2)  # of the best class


@pytest.mark.usefixtures("reading")
def test_counts_of_several_processes_are_put_together(tmp_path, monkeypatch):
    parts = [evaluator(tmp_path, PER_CLASS_RESULT=True) for _ in range(2)]
    parts[0].process(logits([0, 1]), torch.tensor([0, 0]))
    parts[1].process(logits([1]), torch.tensor([1]))
    states = [(e._correct, e._total, e._y_true, e._y_pred, e._per_class_res) for e in parts]
    monkeypatch.setattr("dassl.evaluation.evaluator.gather_objects", lambda own: states)
    parts[1].gather()
    assert (parts[1]._correct, parts[1]._total) == (2, 3)
    assert dict(parts[1]._per_class_res) == {0: [1, 0], 1: [1]}
    assert parts[1].evaluate()["accuracy"] == pytest.approx(200 / 3)
