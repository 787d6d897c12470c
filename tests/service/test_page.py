"""The page in a real browser: headless Chromium, driven by its own chromedriver."""

import json
import os
import re
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

CHROMIUM = shutil.which("chromium")
CHROMEDRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER), reason="needs `apt install chromium chromium-driver`"
)

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--window-size=1280,960",
)
TEXT = "A wonderful story 😀 and a great ending, but the script is boring."


class Page:
    """The page as its user sees it."""

    def __init__(self, driver, wait_until):
        self.driver = driver
        self._wait_until = wait_until

    def open(self, url):
        self.driver.get(url)
        self._wait_until(lambda: self.all("#examples button"))

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def type(self, text):
        # WebDriver cannot type characters beyond the basic plane; a paste is as good.
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        self.run(script, self.one("#text"), text)

    def press(self, *keys):
        self.driver.switch_to.active_element.send_keys(*keys)

    def ask(self, text):
        self.type(text)
        self.run("arguments[0].focus()", self.one("#text"))
        self.press(Keys.CONTROL, Keys.ENTER)
        self.settle()

    def settle(self):
        def quiet():
            busy = self.one("#answer").get_attribute("aria-busy") == "true"
            return not busy and not self.one("#empty").is_displayed()

        self._wait_until(quiet)

    def marks(self):
        """(text, effect) of each highlight."""
        return [
            (mark.get_property("textContent"), mark.get_attribute("class").split()[0])
            for mark in self.all("#shown mark")
        ]

    def emulate(self, scheme, width, height):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def requests(self):
        """The URLs of all requests since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        sent = [one for one in messages if one["method"] == "Network.requestWillBeSent"]
        return [one["params"]["request"]["url"] for one in sent]

    def complaints(self):
        """What the browser's console says since the last call, such as a broken policy."""
        return [entry["message"] for entry in self._log("browser")]

    def _log(self, name):
        return self.driver.get_log(name)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(driver, live, wait_until):
    page = Page(driver, wait_until)
    page.emulate("light", 1280, 960)
    page.open(live.url)
    page.requests()
    page.complaints()
    return page


def expected(client, text, **options):
    answer = client.post("/predict", json={"text": text, **options}).json()
    return answer, [(span["text"], span["effect"]) for span in answer["rationale"]]


def test_typed_text_is_answered_on_ctrl_enter(page, client):
    answer, spans = expected(client, TEXT)
    page.ask(TEXT)
    assert page.one("#label").text == answer["label"] == "POS"
    assert page.one("#score").text == f"{100 * answer['score']:.0f} %"
    assert page.marks() == spans
    assert {effect for _, effect in spans} == {"supports", "opposes"}
    assert page.one("#shown").get_property("textContent") == TEXT
    assert page.one("#count").text == f"{len(TEXT)} characters"
    assert "POS" in page.one("#status").get_property("textContent")


def test_depth_and_weight_of_a_highlight(page):
    page.ask(TEXT)
    read = "return [...document.querySelectorAll('#shown mark')].map(m => [m.textContent, "
    found = dict(page.run(f"{read} getComputedStyle(m).backgroundColor])"))
    alphas = {text: float(re.findall(r"[\d.]+", colour)[-1]) for text, colour in found.items()}
    assert alphas["great"] > alphas["wonderful"] > alphas["boring"]
    title = page.all("#shown mark")[1].get_attribute("title")
    assert title == "strongly supports POS, +3.00 log-odds"


def test_switch_asks_why_not_the_other_label(page, client):
    _, spans = expected(client, TEXT, target="NEG")
    page.ask(TEXT)
    switch = page.one("#why-not")
    assert switch.get_attribute("role") == "switch"
    assert switch.text == "Why not NEG?"
    switch.click()
    page.settle()
    switch = page.one("#why-not")
    assert switch.get_attribute("aria-checked") == "true"
    assert page.one("#label").text == "POS"
    assert page.marks() == spans
    assert page.one("#question").text == "Why not NEG?"
    assert {node.text for node in page.all(".legend .target")} == {"NEG"}
    switch.click()
    page.settle()
    assert page.marks() == expected(client, TEXT)[1]


def test_more_labels_make_a_list(page, serving, four_label_explainer):
    other = serving(four_label_explainer)
    page.open(other.url)
    page.ask(TEXT)
    choice = Select(page.one("#why-not"))
    assert [option.text for option in choice.options] == ["…", "NEG", "MIXED", "OFF"]
    choice.select_by_visible_text("MIXED")
    page.settle()
    assert page.one("#question").text == "Why not MIXED?"


def test_every_word_shows_weak_words_too(page, client):
    text = "A really great film, warm and slow and boring."
    words = expected(client, text, words=True)[0]["words"]
    page.ask(text)
    fewer = page.marks()
    page.run("arguments[0].click()", page.one("input[value=words]"))
    assert page.marks() == [
        (word["text"], word["effect"]) for word in words if word["effect"] != "neutral"
    ]
    assert len(page.marks()) > len(fewer)


def test_keyboard_alone(page):
    page.type(TEXT)
    page.run("arguments[0].focus()", page.one("#text"))
    page.press(Keys.TAB)
    assert page.driver.switch_to.active_element.get_attribute("id") == "explain"
    page.press(Keys.ENTER)
    page.settle()
    page.run("arguments[0].focus()", page.all("#shown mark")[0])
    assert "wonderful" in page.one("#detail").text
    page.press(Keys.ARROW_RIGHT)
    assert page.one("#detail").text == "“great” strongly supports POS, +3.00 log-odds"
    outline = page.run("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.press(Keys.END)
    assert "boring" in page.one("#detail").text


def test_examples_are_answered(page):
    assert len(page.all("#examples button")) == 4
    for number in range(4):
        page.all("#examples button")[number].click()
        page.settle()
        text = page.one("#text").get_property("value")
        assert page.one("#shown").get_property("textContent") == text
        assert page.one("#label").text in {"NEG", "POS"}


@pytest.mark.parametrize(
    "text",
    [
        "<img src=x onerror=alert(1)> great <script>alert(2)</script> boring",
        "\"><svg onload=alert(3)> great & &amp; 'boring' {{7*7}}",
    ],
)
def test_markup_stays_text(page, client, text):
    page.ask(text)
    assert page.one("#shown").get_property("textContent") == text
    assert page.marks() == expected(client, text)[1]
    assert page.all("#shown *:not(mark)") == []
    assert page.complaints() == []


@pytest.mark.parametrize(
    "text",
    [
        "😀😀 great 👩‍👩‍👧 boring 🇩🇪",
        "Cafe\u0301 𝒢𝓇𝑒𝒶𝓉 great nai\u0308ve boring",
        "great 映画 \u202eboring\u202c wonderful",
    ],
)
def test_offsets_count_code_points(page, client, text):
    page.ask(text)
    found = page.marks()
    assert found == expected(client, text)[1]
    assert ("great", "supports") in found
    assert page.one("#count").text == f"{len(text)} characters"


def test_errors_are_said_in_words(page):
    page.ask("   ")
    assert page.one("#error").text.startswith("Text is empty or blank")
    assert page.one("#error").get_attribute("role") == "alert"
    assert not page.one("#result").is_displayed()
    page.ask("great")
    assert not page.one("#error").is_displayed()


def test_unreachable_server_is_said_in_words(page, serving, tiny_explainer, wait_until):
    other = serving(tiny_explainer)
    page.open(other.url)
    other.server.should_exit = True
    wait_until(lambda: not other.server.server_state.connections)
    page.ask("great")
    assert "cannot be reached" in page.one("#error").text


def test_nothing_leaves_the_origin(page, live):
    page.open(live.url)
    page.ask(TEXT)
    page.one("#why-not").click()
    page.settle()
    page.driver.get(f"{live.url}/docs")
    page._wait_until(lambda: len(page.all(".endpoint")) == 7)
    urls = [url for url in page.requests() if not url.startswith(("data:", "chrome:", "about:"))]
    paths = {urlsplit(url).path for url in urls if url.startswith(live.url)}
    assert {url for url in urls if not url.startswith(live.url)} == set()
    assert paths >= {"/", "/predict", "/models", "/docs", "/openapi.json", "/page/app.js"}
    assert page.complaints() == []


def test_docs_can_be_tried(page, live):
    page.driver.get(f"{live.url}/docs")
    page._wait_until(lambda: len(page.all(".endpoint")) == 7)
    page.all(".try button")[0].click()
    page._wait_until(lambda: page.all(".try output pre"))
    assert page.one(".try output p").text.startswith("200, ")
    assert json.loads(page.one(".try output pre").text)["offset_unit"] == "codepoint"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 960), (390, 844)])
def test_looks(page, tmp_path, scheme, width, height):
    page.emulate(scheme, width, height)
    page.ask(TEXT)
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"page-{scheme}-{width}.png"
    assert page.driver.save_screenshot(str(file))
    assert file.stat().st_size > 10_000
    # Nothing sticks out to the side, and text stands out from its highlight.
    assert page.run("return document.documentElement.scrollWidth <= window.innerWidth")
    assert page.run(CONTRAST) >= 4.5


# The smallest contrast (WCAG 2) of text on any highlight over the panel's ground.
CONTRAST = """
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const over = (...colours) => {
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => rgb.map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = getComputedStyle(document.getElementById("answer")).backgroundColor;
  return Math.min(...[...document.querySelectorAll("#shown mark")].map((mark) => {
    const style = getComputedStyle(mark);
    const pair = [light(over(ground, style.backgroundColor)), light(over(style.color))];
    return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  }));
"""
