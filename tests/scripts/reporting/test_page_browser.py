"""The results page in a headless Chromium: it draws, sorts, filters, and complains of nothing."""

import importlib.util
import shutil
import time

import pytest
from PIL import Image

from dassl.prediction_file import read_predictions
from scripts.jobs.protocols import RunKey
from scripts.report import main
from scripts.reporting.page import pictures
from tests.scripts.reporting.synthetic import SyntheticRuns, write_many

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER and importlib.util.find_spec("selenium")),
    reason="needs chromium and chromedriver (apt-get install chromium-driver) and selenium",
)
SECONDS = 60  # that a drawing may take on a slow machine
EVIL = "<img src=x onerror=console.error(1)>"


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # The path is given, so that selenium looks for no driver on the network.
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """The page of 500 runs; of one, all classes have names with HTML in them."""
    folder = tmp_path_factory.mktemp("sweep")
    write_many(folder, 499, classes=40, epochs=50)
    odd = SyntheticRuns(folder, classes=3, name=lambda label: f"{EVIL}{label}")
    odd.write(RunKey("eft", "train_base", "dtd", 16, EVIL.replace("/", ""), "eft", 1), matrix=True)
    file = folder / "report.html"
    words = ["--output", str(folder), "--save", str(file), "--pictures", "0"]
    assert main(words) == 0
    return file


@pytest.fixture
def show(browser):
    """Open a page with nothing remembered of earlier tests; none may end with an error."""

    def show(file):
        browser.set_window_size(1280, 900)
        browser.get(file.as_uri())
        browser.execute_script("sessionStorage.clear(); localStorage.clear()")
        # Opening the same page again may return while the old one is still there.
        browser.execute_script("delete document.documentElement.dataset.ready")
        browser.get(file.as_uri())
        wait_for(browser, "document.documentElement.dataset.ready")
        return browser

    yield show
    errors = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert not errors


@pytest.fixture
def page(show, sweep):
    """The browser with the page of the sweep just opened."""
    return show(sweep)


def texts(page, selector):
    """Text of all elements, in one call: hundreds of them take seconds one by one."""
    return page.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector
    )


def wait_for(page, condition):
    """Wait for a condition in JavaScript."""
    end = time.monotonic() + SECONDS
    while not page.execute_script(f"return Boolean({condition})"):
        assert time.monotonic() < end, condition
        time.sleep(0.05)


def click(page, selector):
    page.execute_script("document.querySelector(arguments[0]).click()", selector)


def choose(page, selector, value):
    page.execute_script(
        "const s = document.querySelector(arguments[0]); s.value = arguments[1];"
        "s.dispatchEvent(new Event(s.tagName === 'SELECT' ? 'change' : 'input'))",
        selector,
        value,
    )


TABLE = ".part:not([hidden]) .table"
ROWS = f"{TABLE} tbody tr"


def column(page, number):
    return texts(page, f"{ROWS} td:nth-child({number})")


def test_it_is_usable_within_two_seconds(page):
    # What the page's thread computes, which other programs on the machine do not lengthen.
    page.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    page.refresh()
    wait_for(
        page, "document.querySelectorAll('.part:not([hidden]) .overview svg.marks').length === 3"
    )
    assert page.execute_script("return document.documentElement.dataset.ready") == "true"
    assert len(column(page, 1)) > 50
    metrics = page.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    (seconds,) = [one["value"] for one in metrics if one["name"] == "ThreadTime"]
    assert 0.05 < seconds < 2


def test_a_click_on_a_name_sorts(page):
    means = f'{TABLE} th[data-key="mean"]'
    click(page, f"{means} button")
    found = [float(text) for text in column(page, 6)]
    assert found == sorted(found, reverse=True)
    click(page, f"{means} button")
    found = [float(text) for text in column(page, 6)]
    assert found == sorted(found)
    assert page.execute_script(f"return document.querySelector('{means}').ariaSort") == "ascending"
    click(page, f'{TABLE} th[data-key="published"] button')
    published = column(page, 8)
    known = [text for text in published if text != "-"]
    assert known, "LightRA's means over all datasets have a published number"
    assert published[: len(known)] == known, "what has none comes last"


def test_words_and_choices_filter(page):
    everything = len(column(page, 1))
    choose(page, f"{TABLE} input", "lightra DTD")
    assert set(zip(column(page, 1), column(page, 2), strict=True)) == {("LightRA", "dtd")}
    choose(page, f'{TABLE} select[data-key="metric"]', "HM")
    assert len(column(page, 1)) == 1
    choose(page, f"{TABLE} input", "no such word")
    assert column(page, 1) == []
    choose(page, f"{TABLE} input", "")
    choose(page, f'{TABLE} select[data-key="metric"]', "")
    assert len(column(page, 1)) == everything


def test_a_click_on_a_method_hides_it_in_table_and_charts(page):
    drawn = "document.querySelectorAll('.part:not([hidden]) .chart svg .mark-symbol path').length"
    wait_for(page, f"{drawn} > 0")
    before = page.execute_script(f"return {drawn}")
    click(page, ".part:not([hidden]) .methods button")
    assert "ZeroshotCLIP" not in column(page, 1)
    wait_for(page, f"{drawn} < {before}")


@pytest.mark.parametrize(
    ("title", "charts"),
    [("base2novel", 14), ("few_shot", 7), ("cross_dataset, trained on imagenet", 5)],
)
def test_every_chart_of_a_protocol_is_drawn(page, title, charts):
    number = texts(page, "nav button").index(title) + 1
    click(page, f"nav button:nth-child({number})")
    here = ".part:not([hidden]) .chart"
    assert len(texts(page, here)) == charts
    for place in range(charts):  # one by one: a chart is drawn when it is on the screen
        one = f"document.querySelectorAll('{here}')[{place}]"
        page.execute_script(f"{one}.scrollIntoView()")
        wait_for(page, f"{one}.querySelector('svg.marks')")
    marks = page.execute_script(
        f"return [...document.querySelectorAll('{here}')].map("
        "c => c.querySelectorAll('svg .mark-symbol path, svg .mark-rule line').length)"
    )
    assert all(marks), marks


def test_a_run_shows_its_details(page):
    click(page, 'nav button[data-part="runs"]')
    choose(page, f'{TABLE} select[data-key="stage"]', "train_base")
    choose(page, f"{TABLE} input", "rada caltech101")
    click(page, f"{ROWS}:first-child")
    (title,) = texts(page, "#run h3")
    assert title.startswith("RAda on caltech101: base2novel, train_base, 16 shots, seed ")
    assert len(texts(page, "#run .worst div")) == 8
    assert texts(page, "#run .links a") == ["config and result", "log", "predictions"]
    link = page.execute_script("return document.querySelector('#run .links a').href")
    assert link.startswith("file:///")
    assert link.endswith("/result.json")
    page.execute_script("document.querySelector('#run .training').scrollIntoView()")
    wait_for(page, "document.querySelectorAll('#run .training svg.marks').length === 2")


def test_a_confusion_matrix_and_names_with_html(page):
    click(page, 'nav button[data-part="runs"]')
    choose(page, f"{TABLE} input", "onerror")
    click(page, f"{ROWS}:first-child")
    assert sorted(texts(page, "#run .worst span")) == [f"{EVIL}{label}" for label in range(3)]
    page.execute_script("document.querySelector('#run .confusion').scrollIntoView()")
    wait_for(page, "document.querySelectorAll('#run .confusion svg .mark-rect path').length === 9")
    assert page.execute_script("return document.querySelectorAll('img[src=x]').length") == 0


def test_mistaken_images_stand_below_their_class(show, tmp_path, monkeypatch):
    key = RunKey("base2novel", "train_base", "dtd", 16, "LightRA", "base2novel", 1)
    runs = SyntheticRuns(tmp_path, classes=3, name=lambda label: f"{EVIL}{label}")
    wrong = read_predictions(runs.write(key, predictions=True))
    for image in wrong:
        file = tmp_path / image.image
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), "orange").save(file)
    files = {"any": [str(tmp_path / image.image) for image in wrong]}
    monkeypatch.setattr(pictures, "images_by_class", lambda *_: files)
    file = tmp_path / "report.html"
    words = ["--output", str(tmp_path), "--data-root", str(tmp_path), "--save", str(file)]
    assert main(words) == 0

    page = show(file)
    click(page, 'nav button[data-part="runs"]')
    classes = len(texts(page, "#run .worst div"))
    assert classes == 3
    assert texts(page, "#run .worst li") == [
        f"taken for {EVIL}{(int(label[-1]) + 1 + number % 2) % 3}, {percent} %"
        for label in texts(page, "#run .worst span")
        for number, percent in enumerate((100, 99, 98))
    ]
    drawn = "[...document.querySelectorAll('#run .worst li img')].filter(i => i.naturalWidth > 0)"
    wait_for(page, f"{drawn}.length === {3 * classes}")
    title = page.execute_script("return document.querySelector('#run .worst li').title")
    assert (tmp_path / title).is_file()
    page.execute_script("document.querySelector('#run .confusion').scrollIntoView()")
    wait_for(page, "document.querySelectorAll('#run .confusion svg .mark-rect path').length === 9")


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_wider_than_the_screen(page, width):
    # A window of Chromium is at least 500 pixels wide; what the page is told counts.
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        for part in range(len(texts(page, "nav button"))):
            click(page, f"nav button:nth-child({part + 1})")
            assert texts(page, ".part:not([hidden]) tbody tr")
            wide = page.execute_script("return document.documentElement.scrollWidth")
            assert wide <= width
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_light_and_dark(page):
    def colours():
        return page.execute_script(
            "return [getComputedStyle(document.body).backgroundColor,"
            "document.querySelector('.part:not([hidden]) svg text').getAttribute('fill')]"
        )

    wait_for(page, "document.querySelector('.part:not([hidden]) svg text')")
    light = colours()
    click(page, "#theme")
    wait_for(page, "document.querySelector('.part:not([hidden]) svg text')")
    wait_for(page, f"getComputedStyle(document.body).backgroundColor !== '{light[0]}'")
    time.sleep(0.5)
    dark = colours()
    assert dark[0] != light[0]
    assert dark[1] != light[1], "the charts' texts follow"
