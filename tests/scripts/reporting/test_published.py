"""The file of printed numbers: its form, and that they agree with themselves and each other."""

import pytest

from scripts.jobs.protocols import (
    ALL_IMAGES,
    ALL_SHOTS,
    DATASET_ORDER,
    FEW_SHOT_DATASETS,
    PROTOCOLS,
    SHIFTS,
)
from scripts.reporting import published
from scripts.reporting.scores import harmonic_mean


def shown(protocol):
    return {row.label: row.values for row in published.shown(protocol)}


def test_published_rows_of_the_report():
    for protocol in PROTOCOLS:
        rows = published.shown(protocol)
        assert rows, protocol
        assert all(row.source for row in rows)
        assert len({row.label for row in rows}) == len(rows)
    for row in (*published.shown("base2novel"), *published.shown("eft")):
        hm = harmonic_mean(row.values["base"], row.values["novel"])
        assert hm == pytest.approx(row.values["hm"], abs=0.011), row.label
    assert shown("base2novel")["LightRA"] == {"base": 84.94, "novel": 78.51, "hm": 81.60}
    usual = {row.method: row for row in published.shown("eft") if row.backbone == "ViT-B/16"}
    assert {method: tuple(row.values.values()) for method, row in usual.items()} == {
        "CLIP": (69.34, 74.22, 71.70),
        "RAda": (82.16, 74.14, 77.94),
        "RAda + Prompt": (84.18, 75.61, 79.67),
        "RAda + Adapter": (84.32, 76.25, 80.08),
    }
    assert shown("eft")["RAda (RN50)"] == {"base": 76.80, "novel": 67.30, "hm": 71.74}
    # One decimal is printed of Table 1's means; the report makes them from the datasets.
    assert shown("fft")["RAda-FT"]["shifts"] == pytest.approx(61.26)


KEYS = {"paper", "table", "source", "protocol", "backbone", "shots", "columns", "rows"}
MEAN_COLUMNS = ("base", "novel", "hm", "targets", "shifts", *map(str, ALL_SHOTS))
COSTS = ("fps", "memory_gb", "gflops")


@pytest.mark.parametrize("table", published.read_tables(), ids=lambda one: one["table"][:24])
def test_form_of_a_published_table(table):
    optional = {"shown", "remade", "note", "misprints"}
    assert KEYS <= table.keys() <= KEYS | optional
    assert table["protocol"] in PROTOCOLS
    shots = PROTOCOLS[table["protocol"]].shots
    assert table["shots"] in (*shots, *(["all"] if ALL_IMAGES in shots else []), 0, "by column")
    columns = set(table["columns"])
    assert columns <= {*MEAN_COLUMNS, *DATASET_ORDER} or columns == set(COSTS)
    if table.get("shown", "all") != "all":
        assert set(table["shown"]) <= table["rows"].keys()
    for row in published.rows_of(table):
        assert row.values.keys() <= columns
        limit = 100 if columns != set(COSTS) else 1000
        assert all(0 < value < limit for value in row.values.values()), row.method
    places = {*columns, *FEW_SHOT_DATASETS, "mean"}
    for method, cells in table.get("misprints", {}).items():
        assert method in table["rows"]
        assert {part for cell in cells for part in cell.split(".")} <= places


# As the tables' notes say: values of another row, and means that are not of the printed values.
MISPRINTS = {
    ("CoOp", "base"),
    ("CoOp", "novel"),
    ("MMA", "novel"),
    ("TPT", "shifts"),
    ("CoCoOp + TPT", "shifts"),
}


def test_every_printed_harmonic_mean_that_is_none_is_marked():
    wrong, checked = set(), 0
    for table in published.read_tables():
        if table["columns"] != ["base", "novel", "hm"]:
            continue
        for method, given in table["rows"].items():
            own = given if isinstance(given, dict) else {"mean": given}
            if "values" in own:
                own = {"mean": own["values"]}
            marked = set(table.get("misprints", {}).get(method, ()))
            for place, (base, novel, hm) in own.items():
                checked += 1
                if harmonic_mean(base, novel) != pytest.approx(hm, abs=0.012):
                    wrong.add((method, place))
                    assert marked & {"hm", f"{place}.hm"}, (method, place)
    assert wrong == {("MMA", "ucf101"), ("second row", "mean")}
    assert checked > 12 * 12


def test_printed_means_are_those_of_the_printed_values():
    """Over the datasets of Table 2, and over the shifts of Tables 1, 3 and 6 and CoOp's."""
    wrong, checked = set(), 0
    for table in published.read_tables():
        for method, row in table["rows"].items():
            values = row.get("values") if isinstance(row, dict) else row
            if values is None:
                assert set(row) - {"mean"} == set(FEW_SHOT_DATASETS)
                base, novel, _ = zip(*(row[name] for name in FEW_SHOT_DATASETS), strict=True)
                means = [sum(base) / 11, sum(novel) / 11]
                means.append(harmonic_mean(*row["mean"][:2]))  # of the means, as all print it
                for column, mean, printed in zip(table["columns"], means, row["mean"], strict=True):
                    checked += 1
                    if mean != pytest.approx(printed, abs=0.02):
                        wrong.add((method, column))
            elif "shifts" in table["columns"] and isinstance(values, list):
                by_column = dict(zip(table["columns"], values, strict=True))
                shifts = [value for name, value in by_column.items() if name in SHIFTS]
                mean, printed = sum(shifts) / len(shifts), by_column["shifts"]
                checked += 1
                # Rounded to as many digits as the table prints.
                near = 0.051 if table["protocol"] == "fft" else 0.011
                if mean != pytest.approx(printed, abs=near):
                    wrong.add((method, "shifts"))
    assert wrong == MISPRINTS
    # The row of CoOp is marked by the four datasets whose values are another row's.
    table = published.find_table("RAda", "Table 2", "ViT-B/16")
    assert table["misprints"]["CoOp"] == ["sun397", "dtd", "eurosat", "ucf101"]
    other = table["rows"]["CLIP-Adapter"]
    assert all(table["rows"]["CoOp"][name] == other[name] for name in table["misprints"]["CoOp"])
    assert checked == 12 * 3 + 10 + 1 + 8 + 2


def test_papers_agree_where_they_print_the_same_row():
    found = {}
    misprint = ("CLIP ViT-B/16", "RAda")  # Table 9, which prints another backbone's
    for table in published.read_tables():
        if table["columns"] != ["base", "novel", "hm"]:
            continue
        for row in published.rows_of(table):
            key = (row.backbone.removeprefix("CLIP "), row.method)
            if (row.backbone, row.method) != misprint:
                assert found.setdefault(key, row.values) == row.values, key
    assert len(found) > 40
