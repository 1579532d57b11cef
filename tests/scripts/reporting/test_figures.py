"""What figures show: axes, labels and values of what is drawn, without pictures to compare with."""

import struct

import pytest

from scripts import report
from scripts.reporting import figures
from scripts.reporting.results import Selection


@pytest.fixture
def figure_of(tmp_path):
    """Return a function that draws a protocol, far enough to know where everything lies."""

    def draw(protocol):
        sections = report.build(Selection(protocol, tmp_path)).sections
        figures.save_figure(sections, tmp_path / "figure.png")
        figure = figures.draw_figure(sections)
        figure.draw_without_rendering()
        return figure

    return draw


def write_base2novel(write_run, trainers, datasets=("dtd", "eurosat")):
    for number, trainer in enumerate(trainers):
        untrained = {"trainable_parameters": 0} if trainer == "ZeroshotCLIP" else {}
        for dataset in datasets:
            for seed in (1, 2):
                base, novel = 70.0 + number + seed, 60.0 + number - seed
                write_run("train_base", dataset, seed, base, trainer=trainer, **untrained)
                write_run("test_new", dataset, seed, novel, trainer=trainer, **untrained)


def write_few_shot(write_run, trainers, shots=(1, 4, 16)):
    for number, trainer in enumerate(trainers):
        untrained = trainer == "ZeroshotCLIP"
        for count in shots:
            for seed in (1, 2):
                accuracy = 30.0 if untrained else 40.0 + number + count + seed
                changes = {"trainable_parameters": 0} if untrained else {}
                changes |= {"protocol": "few_shot", "shots": count, "trainer": trainer}
                write_run("train", "dtd", seed, accuracy, **changes)


def panel(figure, title):
    (found,) = [axis for axis in figure.axes if axis.get_title() == title]
    return found


def marks(axis, label):
    """Return the points that a label of the legend stands for, from the first row or step on."""
    (bar,) = [one for one in axis.containers if one.get_label() == label]
    place = 1 if bar.has_xerr else 0  # rows have their place in y, steps in x
    return sorted(map(tuple, bar.lines[0].get_xydata().tolist()), key=lambda point: point[place])


def labels(ticks):
    return [text.get_text() for text in ticks]


class TestDots:
    def test_rows_are_methods_and_marks_are_metrics(self, figure_of, write_run):
        write_base2novel(write_run, ["ZeroshotCLIP", "LightRA"], ["dtd"])
        axis = panel(figure_of("base2novel"), "dtd")
        assert labels(axis.get_yticklabels()) == ["ZeroshotCLIP", "LightRA"]
        assert axis.yaxis_inverted(), "the first method stands on top"
        assert axis.get_xlabel() == "accuracy (%)"
        # Seeds 1 and 2 of the second method: base 72 and 73, novel 60 and 59.
        assert marks(axis, "base")[1] == (72.5, pytest.approx(0.78))
        assert marks(axis, "novel")[1] == (59.5, 1.0)
        assert marks(axis, "HM")[1][0] == pytest.approx(2 * 72.5 * 59.5 / (72.5 + 59.5))

    def test_deviations_are_bars(self, figure_of, write_run):
        write_base2novel(write_run, ["LightRA"])
        axis = panel(figure_of("base2novel"), "dtd")
        (base,) = [one for one in axis.containers if one.get_label() == "base"]
        ((start, end),) = base.lines[2][0].get_segments()
        assert end[0] - start[0] == pytest.approx(2 * 0.5**0.5)

    def test_zero_shot_is_a_line_across_all_rows(self, figure_of, write_run):
        write_base2novel(write_run, ["ZeroshotCLIP", "LightRA"])
        axis = panel(figure_of("base2novel"), "dtd")
        lines = [line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == "--"]
        hm = 2 * 71.5 * 58.5 / (71.5 + 58.5)
        assert lines == pytest.approx([71.5, 58.5, hm])

    def test_a_panel_for_each_dataset_and_the_mean_first(self, figure_of, write_run):
        write_base2novel(write_run, ["LightRA"], ["eurosat", "dtd"])
        figure = figure_of("base2novel")
        shown = [axis.get_title() for axis in figure.axes if axis.get_visible()]
        assert shown == ["mean over datasets", "dtd", "eurosat"]

    def test_twenty_methods_are_told_apart(self, figure_of, write_run):
        names = [f"Method{number:02}" for number in range(20)]
        write_base2novel(write_run, names, ["dtd"])
        figure = figure_of("base2novel")
        axis = panel(figure, "dtd")
        boxes = [text.get_window_extent() for text in axis.get_yticklabels()]
        assert labels(axis.get_yticklabels()) == names
        assert all(a.y0 >= b.y1 for a, b in zip(boxes, boxes[1:], strict=False)), "names overlap"
        assert min(box.x0 for box in boxes) >= 0, "names are cut off"

    def test_other_protocols_have_one_mark(self, figure_of, write_run):
        source = write_run("train", "imagenet", 1, 70.0, protocol="cross_dataset")
        for name in ("dtd", "imagenet_r"):
            write_run("test", name, 1, 60.0, protocol="cross_dataset", model_dir=str(source))
        figure = figure_of("cross_dataset")
        assert marks(panel(figure, "imagenet"), "accuracy") == [(70.0, 0.0)]
        titles = {axis.get_title() for axis in figure.axes}
        assert {"mean over targets", "mean over shifts", "dtd", "imagenet_r"} <= titles

    def test_the_suite_has_a_part_of_its_own(self, figure_of, write_run):
        write_base2novel(write_run, ["LightRA"], ["dtd"])
        write_base2novel(write_run, ["RAda"], ["shapes"])
        figure = figure_of("base2novel")
        assert labels(panel(figure, "dtd").get_yticklabels()) == ["LightRA"]
        assert labels(panel(figure, "shapes").get_yticklabels()) == ["RAda"]
        titles = [part.get_suptitle() for part in figure.subfigs]
        assert any("demonstration" in title for title in titles)


class TestCurves:
    def test_steps_of_a_doubling_have_equal_width(self, figure_of, write_run):
        write_few_shot(write_run, ["LightRA"])
        axis = panel(figure_of("few_shot"), "dtd")
        assert labels(axis.get_xticklabels()) == ["1", "4", "16"]
        assert axis.get_xticks().tolist() == [1.0, 3.0, 5.0]
        assert marks(axis, "LightRA") == [(1.0, 42.5), (3.0, 45.5), (5.0, 57.5)]

    def test_zero_shot_is_a_star_at_0(self, figure_of, write_run):
        write_few_shot(write_run, ["ZeroshotCLIP", "LightRA"])
        axis = panel(figure_of("few_shot"), "dtd")
        assert labels(axis.get_xticklabels()) == ["0", "1", "4", "16"]
        (star,) = [line for line in axis.lines if line.get_label() == "ZeroshotCLIP"]
        assert (star.get_marker(), star.get_xydata().tolist()) == ("*", [[0.0, 30.0]])

    def test_a_training_free_method_that_uses_images_is_a_curve(self, figure_of, write_run):
        changes = {"protocol": "few_shot", "trainer": "TipAdapter", "trainable_parameters": 0}
        for shots in (1, 4):
            write_run("train", "dtd", 1, 40.0 + shots, shots=shots, **changes)
        axis = panel(figure_of("few_shot"), "dtd")
        assert marks(axis, "TipAdapter") == [(1.0, 41.0), (3.0, 44.0)]

    def test_all_images_come_last(self, figure_of, write_run):
        write_few_shot(write_run, ["LightRA"], shots=(1, 2))
        write_run("train", "dtd", 1, 90.0, protocol="few_shot", shots=-1)
        axis = panel(figure_of("few_shot"), "dtd")
        assert labels(axis.get_xticklabels()) == ["1", "2", "all"]
        assert (3.0, 90.0) in marks(axis, "LightRA")

    def test_twenty_methods_are_told_apart(self, figure_of, write_run):
        write_few_shot(write_run, [f"Method{number:02}" for number in range(20)])
        figure = figure_of("few_shot")
        axis = panel(figure, "dtd")
        lines = [bar.lines[0] for bar in axis.containers]
        looks = {(one.get_color(), one.get_linestyle(), one.get_marker()) for one in lines}
        assert len(looks) == 20
        (legend,) = figure.legends
        assert len(legend.get_texts()) == 20
        box, panel_box = legend.get_window_extent(), axis.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert panel_box.height > 150, "the legend leaves the curves no room"


def test_a_pdf_embeds_fonts_as_outlines(figure_of, write_run, tmp_path):
    write_base2novel(write_run, ["LightRA"])
    figure_of("base2novel")
    sections = report.build(Selection("base2novel", tmp_path)).sections
    figures.save_figure(sections, tmp_path / "figure.pdf")
    content = (tmp_path / "figure.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert b"/Type3" not in content
    assert b"/FontFile2" in content


def test_a_png_grows_with_the_methods(figure_of, write_run, tmp_path):
    def height():
        figure_of("base2novel")
        return struct.unpack(">II", (tmp_path / "figure.png").read_bytes()[16:24])[1]

    write_base2novel(write_run, ["LightRA", "RAda"])
    two = height()
    write_base2novel(write_run, [f"Method{number:02}" for number in range(20)])
    assert height() > 2 * two
