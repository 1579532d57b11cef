"""What was found, as Markdown: the checks, and the methods beside what papers print."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from scripts.jobs.protocols import PROTOCOLS
from scripts.real_data.draws import Draw
from scripts.real_data.methods import POLICIES, SHOTS, Plan
from scripts.real_data.zero_shot import Comparison
from scripts.reporting.published import read_tables
from scripts.reporting.results import Selection, collect, with_labels
from scripts.reporting.scores import score

if TYPE_CHECKING:
    import pandas as pd

# Rows of ``scripts/reporting/published.yaml`` by our methods' names.
_PRINTED = {"ZeroshotCLIP": "CLIP", "RAda": "RAda", "CLIPAdapter": "CLIP-Adapter"}
_SHOWN = 5  # draws that differ, one a line
FEW_SHOT_LINE = (
    "Published: means over the field's 11 datasets, 16 shots, ViT-B/16. These are parts of two of "
    "them, with ViT-B/32, so that only the order of the methods can be compared."
)
CHOICE_LINE = (
    "These features have no validation images: val none takes the published defaults where a "
    "method would search, and CHOSEN ON TEST IMAGES is what a search could reach at most."
)
VIEW_LINE = "There is one view of each training image here; the papers augment anew in every epoch."


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], labels: int = 1) -> str:
    """A table whose first columns are texts and the others numbers."""
    align = ["left"] * labels + ["right"] * (len(header) - labels)
    return tabulate(rows, header, tablefmt="pipe", colalign=align, disable_numparse=True)


def zero_shot_part(found: Sequence[Comparison]) -> str:
    """The zero-shot accuracies beside the expected ones."""
    rows = [
        [
            *(one.file, one.images, one.classes, f"{one.expected:.2f}"),
            "-" if one.found is None else f"{one.found:.2f}",
            "equal" if one.equal else one.problem or "DIFFERS",
        ]
        for one in found
    ]
    header = ["file", "images", "classes", "expected", "found", ""]
    equal = sum(one.equal for one in found)
    return "\n\n".join(
        [
            "### Zero-shot accuracy in percent",
            markdown(header, rows, labels=3),
            f"{equal} of {len(found)} equal",
        ]
    )


def draws_part(draws: Sequence[Draw], problem: str = "") -> str:
    """How many published draws are ours, and how the first of the others differ."""
    title = "### Published few-shot draws against our own"
    if problem:
        return f"{title}\n\n{problem}"
    different = [draw for draw in draws if draw.problem]
    lines = [f"{len(draws) - len(different)} of {len(draws)} equal"]
    lines += [
        f"- {draw.dataset}, {draw.shots} shots, seed {draw.seed}, {draw.part}: {draw.problem}"
        for draw in different[:_SHOWN]
    ]
    if len(different) > _SHOWN:
        lines.append(f"- and {len(different) - _SHOWN} more")
    return "\n".join([title, "", *lines])


def methods_part(plan: Plan, published: dict[str, Any]) -> str:
    """The methods' accuracies beside the published ones, a table for each protocol."""
    blocks = []
    by_protocol: dict[str, list[str]] = {}
    for dataset in plan.runs:
        by_protocol.setdefault(plan.protocol(dataset), []).append(dataset)
    if "base2novel" in by_protocol:
        blocks += [
            base2novel_table(plan, dataset, published["base2novel"].get(dataset, {}))
            for dataset in by_protocol["base2novel"]
        ]
    if "few_shot" in by_protocol:
        blocks.append(few_shot_table(plan, by_protocol["few_shot"], published["few_shot"]))
    return "\n\n".join([*blocks, CHOICE_LINE, VIEW_LINE])


def base2novel_table(plan: Plan, dataset: str, known: dict[str, list[float]]) -> str:
    """Base, novel and HM of a dataset, ours and as printed."""
    table = next(t for t in read_tables() if "Table 2" in t["table"] and t["paper"] == "RAda")
    printed = {
        method: table["rows"][name][dataset]
        for method, name in _PRINTED.items()
        if dataset in table["rows"][name]
    } | known
    rows = []
    for label, method, numbers in _numbers(plan, "base2novel", [dataset]):
        ours = [numbers.get((dataset, metric)) for metric in ("base", "novel", "hm")]
        theirs = printed.get(method)
        difference = "-"
        if theirs is not None and ours[2] is not None:
            difference = f"{ours[2].mean - theirs[2]:+.2f}"
        rows.append(
            [
                label,
                *map(_text, ours),
                "-" if theirs is None else " / ".join(f"{value:.2f}" for value in theirs),
                difference,
            ]
        )
    header = ["method", "base", "novel", "HM", "published base / novel / HM", "HM less published"]
    return f"### Base-to-novel, {SHOTS} shots: {dataset}\n\n{markdown(header, rows)}"


def few_shot_table(plan: Plan, datasets: Sequence[str], known: dict[str, float]) -> str:
    """Accuracy on all classes of each dataset, beside the published means."""
    (table,) = (t for t in read_tables() if t["protocol"] == "few_shot")
    column = [str(name) for name in table["columns"]].index(str(SHOTS))
    printed = {
        method: table["rows"][name][column]
        for method, name in _PRINTED.items()
        if name in table["rows"]
    } | known
    rows = []
    for label, method, numbers in _numbers(plan, "few_shot", datasets):
        ours = [_text(numbers.get((dataset, "accuracy"))) for dataset in datasets]
        rows.append([label, *ours, f"{printed[method]:.2f}" if method in printed else "-"])
    header = ["method", *datasets, "published mean of 11"]
    title = f"### Few-shot, {SHOTS} shots, all classes there are"
    return f"{title}\n\n{markdown(header, rows)}\n\n{FEW_SHOT_LINE}"


def _numbers(plan: Plan, protocol: str, datasets: Sequence[str]) -> list[tuple[str, str, Any]]:
    """Label, method and numbers by dataset and metric, in the order of the plan's methods."""
    found = []
    for policy in POLICIES:
        selection = Selection(
            protocol=protocol,
            output=plan.folder(policy),
            trainers=tuple(plan.methods),
            datasets=tuple(datasets),
            shots=(SHOTS,),
            seeds=plan.seeds,
            must_exist=False,
        )
        try:
            scores = score(with_labels(collect(selection), protocol), PROTOCOLS[protocol])
        except LookupError:
            continue  # none of them has finished
        for label, own in scores.groupby("series", sort=False):
            numbers = {(row.dataset, row.metric): row for row in own.itertuples()}
            found.append((str(label), str(own.iloc[0].trainer), numbers))
    return sorted(found, key=lambda entry: plan.methods.index(entry[1]))


def _text(number: pd.Series | None) -> str:
    """A mean with its deviation over seeds, if there are several."""
    if number is None:
        return "-"
    deviation = "" if number.std != number.std else f" ± {number.std:.2f}"  # NaN: a single seed
    return f"{number.mean:.2f}{deviation}"
