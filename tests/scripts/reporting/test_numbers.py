"""Statistics against numbers worked out by hand, and the warnings."""

import csv
import io
import json
import math

import pandas as pd
import pytest

from dassl.config.identity import sealed
from scripts import report
from scripts.jobs.protocols import FEW_SHOT_DATASETS, PROTOCOLS, Protocol
from scripts.reporting.results import Selection
from scripts.reporting.scores import harmonic_mean, summarise, summarise_hm


def build(tmp_path, protocol="base2novel", **selection):
    return report.build(Selection(protocol, tmp_path, **selection))


def numbers(built):
    """Return the CSV's numbers by (dataset, trainer, shots, metric)."""
    rows = csv.DictReader(io.StringIO(built.render("csv")))
    return {
        (row["dataset"], row["trainer"], int(row["shots"]), row["metric"]): (
            float(row["mean"]),
            float(row["std"]) if row["std"] else None,
            int(row["n"]),
        )
        for row in rows
    }


def by_seed(*datasets):
    """Return accuracies of datasets by seed as one table."""
    return pd.DataFrame([pd.Series(values) for values in datasets]).T


def test_mean_and_sample_deviation():
    stat = summarise(by_seed({1: 80.0, 2: 82.0, 3: 87.0}))
    assert stat.mean == pytest.approx(83.0)
    assert stat.std == pytest.approx(math.sqrt((9 + 1 + 16) / 2))  # 3.6056; 2.9439 with ddof = 0
    assert summarise(by_seed({1: 80.0})) == (80.0, None, 1)


def test_harmonic_mean_of_the_papers():
    # CoOp as run for CoCoOp: 82.69 and 63.22 give 71.66.
    assert harmonic_mean(82.69, 63.22) == pytest.approx(71.66, abs=0.005)
    assert harmonic_mean(60.0, 40.0) == pytest.approx(48.0)
    assert harmonic_mean(0.0, 0.0) == 0.0


def test_harmonic_mean_is_of_the_means_over_seeds():
    # Means 60 and 60 give 60; the mean of the seeds' HMs (48 and 64) would be 56.
    stat = summarise_hm(by_seed({1: 40.0, 2: 80.0}), by_seed({1: 60.0, 2: 160 / 3}))
    assert stat.mean == pytest.approx(harmonic_mean(60.0, (60 + 160 / 3) / 2))
    assert stat.std == pytest.approx(16 / math.sqrt(2))
    assert stat.n == 2


def test_mean_over_datasets():
    stat = summarise(by_seed({1: 60.0, 2: 70.0}, {1: 80.0, 2: 94.0}))
    assert stat.mean == pytest.approx(76.0)
    assert stat.std == pytest.approx(12 / math.sqrt(2))  # seeds' means 70 and 82
    # Different seeds: no deviation belongs to that mean.
    uneven = summarise(by_seed({1: 60.0, 2: 70.0, 3: 80.0}, {1: 80.0, 2: 94.0}))
    assert uneven == (78.5, None, 2)
    assert summarise(by_seed({1: 60.0, 2: 70.0}, {1: 80.0})) == (72.5, None, 1)


def test_base2novel_by_hand(tmp_path, write_run):
    for dataset, base, novel in (("dtd", (80, 84), (60, 60)), ("eurosat", (90, 94), (70, 80))):
        for seed in (0, 1):
            write_run("train_base", dataset, seed, base[seed])
            write_run("test_new", dataset, seed, novel[seed])
    found = numbers(build(tmp_path))
    base = found["dtd", "LightRA", 16, "base"]
    assert base == (82.0, pytest.approx(4 / math.sqrt(2)), 2)
    assert found["dtd", "LightRA", 16, "novel"] == (60.0, 0.0, 2)
    assert found["dtd", "LightRA", 16, "hm"][0] == pytest.approx(2 * 82 * 60 / 142)
    assert found["eurosat", "LightRA", 16, "hm"][0] == pytest.approx(2 * 92 * 75 / 167)
    assert found["mean", "LightRA", 16, "base"] == (87.0, pytest.approx(4 / math.sqrt(2)), 2)
    assert found["mean", "LightRA", 16, "novel"] == (67.5, pytest.approx(5 / math.sqrt(2)), 2)
    # Of the mean base and the mean novel accuracy, not the mean of the datasets' HMs.
    hm = found["mean", "LightRA", 16, "hm"]
    assert hm[0] == pytest.approx(2 * 87 * 67.5 / 154.5)
    first, second = 2 * 85 * 65 / 150, 2 * 89 * 70 / 159
    assert hm[1] == pytest.approx(abs(first - second) / math.sqrt(2))


def test_dataset_without_novel_half_stays_out_of_the_means(tmp_path, write_run):
    write_run("train_base", "dtd", 1, 80.0)
    write_run("test_new", "dtd", 1, 60.0)
    write_run("train_base", "eurosat", 1, 90.0)
    built = build(tmp_path)
    found = numbers(built)
    assert found["mean", "LightRA", 16, "base"] == (80.0, None, 1)
    assert ("eurosat", "LightRA", 16, "hm") not in found
    assert any("test_new/eurosat" in line and "left out" in line for line in built.warnings())


def test_few_shot_by_hand(tmp_path, write_run):
    for shots, dtd, eurosat in ((1, 50.0, 60.0), (16, 70.0, 85.0)):
        write_run("train", "dtd", 1, dtd, shots=shots, protocol="few_shot")
        write_run("train", "eurosat", 1, eurosat, shots=shots, protocol="few_shot")
    found = numbers(build(tmp_path, "few_shot"))
    assert found["mean", "LightRA", 1, "accuracy"] == (55.0, None, 1)
    assert found["mean", "LightRA", 16, "accuracy"] == (77.5, None, 1)
    assert found["eurosat", "LightRA", 16, "accuracy"] == (85.0, None, 1)


def test_rows_say_what_numbers_were_chosen_on(tmp_path, write_run):
    for policy, seed, accuracy in (("min4", 1, 50.0), ("full", 2, 60.0), ("released", 3, 70.0)):
        validation = {"policy": policy, "chosen": {"alpha": 1.0}}
        how = {"protocol": "few_shot", "trainer": "GDA", "validation": validation}
        write_run("train", "dtd", seed, accuracy, **how)
    write_run("train", "dtd", 1, 40.0, protocol="few_shot")
    built = build(tmp_path, "few_shot")
    rows = {row[1]: row[2] for row in built.sections[0].tables[0].rows}
    assert rows == {
        "GDA (val min4)": "50.00",
        "GDA (val full)": "60.00",
        "GDA (CHOSEN ON TEST IMAGES)": "70.00",
        "LightRA": "40.00",
    }
    lines = csv.DictReader(io.StringIO(built.render("csv")))
    assert {line["val_policy"]: float(line["mean"]) for line in lines} == {
        "min4": 50.0,
        "full": 60.0,
        "released": 70.0,
        "": 40.0,
    }


def test_cross_dataset_means_are_apart_and_without_the_source(tmp_path, write_run):
    source = write_run("train", "imagenet", 1, 70.0, protocol="cross_dataset")
    accuracies = {"dtd": 40.0, "eurosat": 50.0, "imagenetv2": 60.0, "imagenet_a": 80.0}
    for name, accuracy in accuracies.items():
        write_run("test", name, 1, accuracy, protocol="cross_dataset", model_dir=str(source))
    found = numbers(build(tmp_path, "cross_dataset"))
    assert found["mean_targets", "LightRA", 16, "accuracy"][0] == 45.0
    assert found["mean_shifts", "LightRA", 16, "accuracy"][0] == 70.0
    assert found["imagenet", "LightRA", 16, "accuracy"][0] == 70.0


def test_cross_dataset_sources_do_not_mix(tmp_path, write_run):
    for source, target, accuracy in (("imagenet", "dtd", 40.0), ("caltech101", "eurosat", 50.0)):
        trained = write_run("train", source, 1, 70.0, protocol="cross_dataset")
        model = f"output/{trained.relative_to(tmp_path)}"
        write_run("test", target, 1, accuracy, protocol="cross_dataset", model_dir=model)
    sections = build(tmp_path, "cross_dataset").sections
    assert [(s.source, s.datasets()) for s in sections] == [
        ("imagenet", ["imagenet", "dtd"]),
        ("caltech101", ["caltech101", "eurosat"]),
    ]


def seeds_of(write_run, accuracies, **changes):
    return [
        write_run("train", "dtd", seed, accuracy, protocol="few_shot", **changes)
        for seed, accuracy in enumerate(accuracies)
    ]


@pytest.mark.parametrize(
    ("accuracies", "flagged"),
    [
        ((70.0, 71.0, 59.9), [2]),  # 10.6 below the median of the other two
        ((70.0, 71.0, 60.6), []),  # 9.9 below
        ((70.0, 55.0), [1]),
        ((55.0,), []),
    ],
)
def test_collapsed_seed_is_named_with_its_directory(tmp_path, write_run, accuracies, flagged):
    directories = seeds_of(write_run, accuracies)
    lines = [
        line for line in build(tmp_path, "few_shot").warnings() if line.startswith("collapsed")
    ]
    assert len(lines) == len(flagged)
    for seed, line in zip(flagged, lines, strict=True):
        assert line.endswith(str(directories[seed]))
        assert "other seeds' median" in line


def test_chance_level_is_flagged_even_when_all_seeds_are_there(tmp_path, write_run):
    # 10 classes, 400 images: a guesser gets 10 +- 1.5 %, so 14 is chance and 15 is not.
    seeds_of(write_run, (10.0, 14.0, 15.0), chance=10.0, num_test=400)
    lines = [line for line in build(tmp_path, "few_shot").warnings() if "chance level" in line]
    assert [line.rsplit("/", 1)[1] for line in lines] == ["seed0", "seed1"]


def test_missing_seeds_are_named(tmp_path, write_run):
    for seed in (1, 2, 3):
        write_run("train", "dtd", seed, 70.0, protocol="few_shot")
    write_run("train", "eurosat", 1, 70.0, protocol="few_shot")
    (line,) = build(tmp_path, "few_shot").warnings()
    assert line.startswith("missing seeds 2, 3: ")
    assert line.endswith("few_shot/train/eurosat/shots_16/LightRA/few_shot")
    # Seeds that were asked for count even where no run has them.
    assert len(build(tmp_path, "few_shot", seeds=(1, 2, 3, 4)).warnings()) == 2
    assert build(tmp_path, "few_shot", seeds=(1,)).warnings() == []


def test_seeds_with_different_configs_are_named(tmp_path, write_run):
    write_run("train", "dtd", 1, 70.0, protocol="few_shot", config={"SEED": 1, "A": {"B": 1}})
    same = {"SEED": 2, "OUTPUT_DIR": "x", "DATASET": {"ROOT": "y"}, "A": {"B": 1}}
    same["FEATURE_CACHE"] = {"DIR": "z"}
    same |= {"DEVICE": "cuda:1", "TRAIN": {"TIMEOUT": 5, "GRAD_CHECKPOINTING": True}}
    same |= {"TEST": {"ZERO_SHOT_CHECK": "none", "COMPUTE_CMAT": True}}
    write_run("train", "dtd", 2, 70.0, protocol="few_shot", config=same)
    assert build(tmp_path, "few_shot").warnings() == []
    write_run("train", "dtd", 2, 70.0, protocol="few_shot", config={**same, "A": {"B": 2}})
    (line,) = build(tmp_path, "few_shot").warnings()
    assert "different configs: A.B (seed 1: 1, seed 2: 2)" in line


def test_a_damaged_result_is_named_and_does_not_count(tmp_path, write_run):
    for seed in (1, 2):
        directory = write_run("train", "dtd", seed, 70.0, protocol="few_shot")
    path = directory / "result.json"
    path.write_text(json.dumps(sealed(json.loads(path.read_text()))))
    assert build(tmp_path, "few_shot").warnings() == []
    path.write_text(path.read_text().replace("70.0", "99.0"))
    missing, line = build(tmp_path, "few_shot", seeds=(1, 2)).warnings()
    assert missing.startswith("missing seed 2: ")
    assert line == f"result.json is damaged: it was changed after it was written: {directory}"


def test_other_doubts_are_named(tmp_path, write_run):
    write_run("train", "dtd", 1, 70.0, protocol="few_shot", notes=["2 images skipped"])
    write_run("train", "eurosat", 1, 70.0, protocol="few_shot", backbone="RN50", seed=4)
    write_run("train", "ucf101", 1, 70.0, protocol="few_shot", subsample_classes="base")
    write_run("train", "dtd", 1, 70.0, protocol="few_shot", trainer="RAda", split_hash="other")
    write_run("train", "eurosat", 1, 70.0, protocol="few_shot", trainer="RAda")
    write_run("train", "ucf101", 1, 70.0, protocol="few_shot", trainer="RAda")
    report = build(tmp_path, "few_shot")
    lines = "\n".join(report.warnings())
    assert [note for s in report.sections for note in s.notes] == [
        f"2 images skipped (1 run, {runs_directory(tmp_path)})"
    ]
    assert "result of another run (seed is 4, not 1)" in lines
    assert "result of another run (subsample_classes is base, not all)" in lines
    assert "LightRA: mixed backbones RN50, ViT-B/16" in lines
    assert "trainers saw different images (dtd, train, 16 shots, seed 1)" in lines
    assert len(lines.splitlines()) == 4


def runs_directory(tmp_path):
    return tmp_path / "few_shot/train/dtd/shots_16/LightRA/few_shot/seed1"


def test_an_untrained_method_comes_first_and_needs_no_further_seeds(tmp_path, write_run):
    for seed in (1, 2):
        write_run("train_base", "dtd", seed, 70.0)
        write_run("test_new", "dtd", seed, 60.0)
    write_run("train_base", "dtd", 1, 50.0, trainer="ZeroshotCLIP", trainable_parameters=0)
    write_run("test_new", "dtd", 1, 50.0, trainer="ZeroshotCLIP", trainable_parameters=0)
    report = build(tmp_path)
    assert report.sections[0].series == ["ZeroshotCLIP", "LightRA"]
    assert not any(line.startswith("missing") for line in report.warnings())


def test_half_written_results_do_not_count(tmp_path, write_run):
    write_run("train", "dtd", 1, 70.0, protocol="few_shot")
    write_run("train", "dtd", 2, 10.0, protocol="few_shot", status="running")
    (write_run("train", "dtd", 3, 10.0, protocol="few_shot") / "result.json").write_text('{"sta')
    write_run("train", "dtd", 4, float("nan"), protocol="few_shot")
    assert numbers(build(tmp_path, "few_shot"))["dtd", "LightRA", 16, "accuracy"] == (70.0, None, 1)


def test_configs_of_one_trainer_are_series_of_their_own(tmp_path, write_run):
    write_run("train", "dtd", 1, 70.0, protocol="few_shot")
    write_run("train", "dtd", 1, 60.0, protocol="few_shot", cfg="ablation")
    write_run("train", "dtd", 1, 50.0, protocol="few_shot", trainer="RAda")
    (section,) = build(tmp_path, "few_shot").sections
    names = ["LightRA (ablation)", "LightRA (few_shot)", "RAda"]
    assert section.series == names
    (section,) = build(tmp_path, "few_shot", cfg=("few_shot", "ablation")).sections
    names = ["LightRA (few_shot)", "LightRA (ablation)", "RAda"]
    assert section.series == names
    # Another config than the protocol's own is named even when it is the only one.
    (section,) = build(tmp_path, "few_shot", cfg=("ablation",)).sections
    assert section.series == ["LightRA (ablation)"]


def test_row_without_any_run_is_named(tmp_path, write_run):
    write_run("train", "dtd", 1, 70.0, protocol="few_shot")
    write_run("train", "dtd", 1, 60.0, protocol="few_shot", trainer="RAda", cfg="ablation")
    report = build(tmp_path, "few_shot", trainers=("LightRA", "RAda"), cfg=("few_shot", "ablation"))
    assert report.warnings() == [
        "missing row: LightRA (ablation) has no finished run here",
        "missing row: RAda (few_shot) has no finished run here",
    ]
    assert build(tmp_path, "few_shot").warnings() == []
    assert build(tmp_path, "few_shot", cfg=("few_shot",)).warnings() == []


def test_harmonic_mean_follows_from_the_classes_not_the_name(tmp_path, write_run, monkeypatch):
    row = Protocol("mine", "first", "base", "second", "new", (16,))
    monkeypatch.setitem(PROTOCOLS, "mine", row)
    for dataset in FEW_SHOT_DATASETS:
        for protocol, stages in (("mine", row.stages), ("eft", ("train_base", "test_new"))):
            for stage, accuracy in zip(stages, (60.0, 40.0), strict=True):
                write_run(stage, dataset, 1, accuracy, protocol=protocol, trainer="Unheard")
    for protocol in ("mine", "eft"):
        found = numbers(build(tmp_path, protocol))
        for dataset in (*FEW_SHOT_DATASETS, "mean"):
            values = [found[dataset, "Unheard", 16, name][0] for name in ("base", "novel", "hm")]
            assert values == [60.0, 40.0, pytest.approx(48.0)]
    # Nothing is published of a protocol that only this repository knows.
    text = build(tmp_path, "mine").render("text")
    assert "HM = 2bn/(b + n)" in text
    assert "*" not in text
    assert "ublished" not in text
