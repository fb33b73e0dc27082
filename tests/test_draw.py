"""``draw``: the page to draw on, as a file, and in a real browser."""

import base64
import csv
import io
import json
import re
import shutil
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.cli import main
from mnist_lightning.data.normal_form import normal_form
from mnist_lightning.model import two_layers
from mnist_lightning.runs import Run

RUN = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "5", "--model.hidden_size", "16"]
PAGE = Path("lightning_logs/version_0/draw.html")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = pytest.mark.filterwarnings("ignore")


class Deep(MNISTClassifier):
    """Three layers, one without a bias, and dropout."""

    def __init__(self) -> None:
        super().__init__(16, dropout=0.5)
        self.network.insert(3, nn.Linear(16, 12, bias=False))
        self.network.insert(4, nn.ReLU())
        self.network[5] = nn.Linear(12, 10)


class Normed(MNISTClassifier):
    def __init__(self, hidden_size: int = 16) -> None:
        super().__init__(hidden_size)
        self.network.insert(3, nn.LayerNorm(hidden_size))


class Inverted(MNISTClassifier):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(1 - images)


# -------------------------------------------------------------------------- the file


def test_the_page_is_one_file_that_asks_nothing_of_the_network_and_is_opened_where_there_is_a_display(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    main(["fit", *RUN[:4], "--trainer.enable_progress_bar", "false"])
    main(["draw"])
    assert f"Written  {PAGE}" in capsys.readouterr().out
    assert opened == []  # no display
    monkeypatch.setenv("DISPLAY", ":0")
    main(["draw", "--no_open"])
    assert opened == []
    main(["draw"])
    assert opened == [PAGE.resolve().as_uri()]
    text = PAGE.read_text("utf-8")
    assert len(text) < 1_200_000
    assert not re.search(r"https?:|//\w+\.\w+/|@import|\bsrc=|fetch\(|import\(|url\(", text)
    assert re.findall("<link.*", text) == ['<link rel="icon" href="data:,">']
    assert re.search(r"default-src 'none'; img-src data:; script-src 'sha256-[\w+/=]+'; style-src 'sha256-", text)
    assert not re.search("@(TITLE|POLICY|DATA)@", text)


def test_what_cannot_be_drawn_for_is_one_line(fails: Callable[..., str]) -> None:
    assert "no fit run with a checkpoint" in fails("draw", "--no_open")
    for model_class, why in ((Normed, "it has other layers"), (Inverted, "a probability would differ by")):
        root = ["--trainer.default_root_dir", model_class.__name__]
        main(["fit", *RUN[:4], *root], model_class=model_class)
        assert f"{model_class.__name__} is another ({why}" in fails("draw", *root, model_class=model_class)
    main(["fit", *RUN])
    assert "maybe" in fails("draw", "--no_open", "maybe")
    assert "no checkpoint at 'missing.ckpt'" in fails("draw", "--ckpt_path", "missing.ckpt")
    Path("elsewhere.ckpt").write_bytes(Run.open().path.read_bytes())
    Path("draw.html").write_text("a page of the user's own")
    assert "would be replaced" in fails("draw", "--ckpt_path", "elsewhere.ckpt")


def test_a_class_cannot_be_code() -> None:
    class Hostile(MNISTDataModule):
        classes = ("</script><script>alert(1)</script>", *"123456789")

    main(["fit", *RUN], data_class=Hostile)
    main(["draw", "--no_open"], data_class=Hostile)
    text = PAGE.read_text("utf-8")
    assert text.count("<script") == text.count("</script>") == 2
    assert "alert(1)" in text


# -------------------------------------------------------------------------- in Chromium


Strokes = list[list[tuple[float, float]]]


@pytest.fixture
def digits(script: Callable[[str], Any]) -> dict[int, Strokes]:
    """Strokes of ten digits, in parts of the pad."""

    def points(row: str) -> list[tuple[float, float]]:
        pairs = [point.split(",") for point in row.split()]
        return [(0.25 + float(x) / 200, 0.12 + float(y) / 132) for x, y in pairs]

    return {digit: [*map(points, rows)] for digit, rows in script("handwriting").STROKES.items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of the tutorial's network and its page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("draw"))
        main(["fit", "--trainer.max_epochs", "3", "--trainer.enable_progress_bar", "false"])
        main(["draw", "--no_open"])
        return Path.cwd()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Opens the page, in the folder of its run. At the end, there was no other request and no message."""
    monkeypatch.chdir(trained)
    contexts, heard = [], []

    def open_(path: Path = PAGE, **kwargs: Any) -> Any:
        contexts.append(browser.new_context(**kwargs))
        page = contexts[-1].new_page()
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith("data:") else heard.append(request.url))
        page.goto(path.resolve().as_uri())
        assert heard.pop(0) == path.resolve().as_uri()
        return page

    yield open_
    for context in contexts:
        context.close()
    assert heard == []


def draw(page: Any, strokes: Strokes) -> None:
    box = page.locator("#pad").bounding_box()
    for stroke in strokes:
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in places[1:]:
            page.mouse.move(*place, steps=2)
        page.mouse.up()


def shown(page: Any) -> np.ndarray:
    """The probabilities that the page shows, ``(10,)``; NaN where it shows none."""
    texts = [page.inner_text(f"#p{digit}") for digit in range(10)]
    return np.array([float(text.removesuffix(" %")) / 100 if text else np.nan for text in texts])


def pixels(page: Any, name: str) -> np.ndarray:
    """The pixels of one of the page's canvases, ``(H, W, 3)`` uint8."""
    png = base64.b64decode(page.evaluate(f"$('{name}').toDataURL().split(',')[1]"))
    return np.array(Image.open(io.BytesIO(png)).convert("RGB"))


@pytest.mark.slow
@pytest.mark.parametrize("model_class", [MNISTClassifier, Deep])
def test_the_page_computes_the_networks_probabilities(browser: Any, mnist: Any, model_class: Any) -> None:
    main(["fit", *RUN[:4]], model_class=model_class)
    main(["draw", "--no_open"], model_class=model_class)
    images = mnist("t10k")[0][:500].reshape(-1, 784)
    page = browser.new_page()
    page.goto(PAGE.resolve().as_uri())
    got = page.evaluate("images => images.map(x => forward(Float32Array.from(x, v => v / 255)).p)", images.tolist())
    model = Run.open().load(model_class).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(images).float() / 255).softmax(1)
        assert np.abs(np.array(got) - expected.numpy()).max() < 1e-3
        later = model.network[-1].weight
        if model_class is Deep:
            later = later @ model.network[3].weight
    assert np.allclose(page.evaluate("Array.from(voice)"), later.flatten().detach(), atol=1e-3)
    page.close()


@pytest.mark.slow
def test_ten_digits_are_read_in_pythons_normal_form_and_predict_reads_the_saved_pictures_likewise(
    open_page: Callable[..., Any], digits: Any, tmp_path: Path
) -> None:
    page = open_page()
    probabilities = []
    for digit, strokes in digits.items():
        draw(page, strokes)
        assert page.inner_text("#answer") == str(digit)
        probabilities.append(shown(page))
        assert probabilities[-1].sum() == pytest.approx(1, abs=0.006)
        ours = 255 - pixels(page, "seen")[..., 0].astype(int)  # ink is dark
        theirs = normal_form(1 - pixels(page, "pad")[..., 0] / 255).astype(int)
        assert np.abs(ours - theirs).max() <= 1
        with page.expect_download() as download:
            page.click("#save")
        download.value.save_as(tmp_path / f"{digit}.png")
        page.click("#clear")
    main(["predict", str(tmp_path)])
    with (PAGE.parent / "pictures.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["prediction"] for row in rows] == [str(digit) for digit in digits]
    read = np.array([[float(row[f"p{digit}"]) for digit in range(10)] for row in rows])
    assert np.abs(read - np.array(probabilities)).max() < 0.05


@pytest.mark.slow
def test_a_finger_draws(open_page: Callable[..., Any], digits: Any) -> None:
    phone = open_page(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    box = phone.locator("#pad").bounding_box()
    finger = phone.context.new_cdp_session(phone)
    places = [{"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]} for x, y in digits[3][0]]
    for kind, place in [("touchStart", places[0]), *(("touchMove", place) for place in places[1:])]:
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [place]})
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    phone.wait_for_function("document.querySelector('#answer').textContent === '3'", timeout=5000)
    assert phone.evaluate("scrollY") == 0  # the page stays where it is while a finger draws


@pytest.mark.slow
def test_an_empty_pad_claims_nothing_and_strokes_can_be_taken_back(open_page: Callable[..., Any], digits: Any) -> None:
    page = open_page()

    def is_empty() -> bool:
        return page.inner_text("#answer") == "" and bool(np.isnan(shown(page)).all())

    assert is_empty()
    draw(page, digits[1])
    draw(page, digits[3])
    two = shown(page)
    page.click("#undo")
    assert page.inner_text("#answer") == "1"
    assert not np.array_equal(two, shown(page))
    page.keyboard.press("Control+z")
    assert is_empty()
    draw(page, digits[1])
    page.keyboard.press("Escape")
    assert is_empty()
    page.click("#undo")  # brings back what Escape has cleared
    assert page.inner_text("#answer") == "1"
    page.click("#clear")
    assert is_empty()
    draw(page, [*digits[1], [(0.5, 0.5), (3, 0.5)]])  # the pointer leaves the pad
    assert 40 < page.evaluate("pen") <= 72
    page.click("#clear")
    assert page.evaluate("document.activeElement.id") == "undo"  # for the keyboard: Clear itself is disabled now
    while page.is_enabled("#undo"):
        page.click("#undo")
    assert page.evaluate("document.activeElement.id") == "another"
    page.click("#another")
    assert page.inner_text("#answer") != ""
    assert "The network is wrong" in page.inner_text("#note")
    draw(page, digits[1])  # takes the place of the test image
    assert page.inner_text("#answer") == "1"


@pytest.mark.slow
def test_another_is_each_of_the_reports_mistakes(open_page: Callable[..., Any], mnist: Any) -> None:
    main(["test"])
    mistakes = json.loads((PAGE.parent / "report.json").read_text())["most_confident_mistakes"]
    page = open_page()
    images, digits = mnist("t10k")
    for mistake in [*mistakes, mistakes[0]]:
        page.click("#another")
        assert page.inner_text("#answer") == str(mistake["prediction"])
        assert f"Test image {mistake['index']} is: {digits[mistake['index']]}" in page.inner_text("#note")
        assert np.array_equal(255 - pixels(page, "seen")[..., 0], images[mistake["index"]])


@pytest.mark.slow
def test_a_hidden_unit_shows_its_weights_and_what_it_speaks_for(open_page: Callable[..., Any], digits: Any) -> None:
    page = open_page()
    draw(page, digits[3])
    assert "adds most to the answer 3" in page.inner_text("#which")
    page.locator("#units").focus()
    page.keyboard.press("ArrowDown")
    unit = int(re.search(r"Unit (\d+) speaks most for (\d)", page.inner_text("#which"))[1])
    said = int(re.search(r"speaks most for (\d)", page.inner_text("#which"))[1])
    layers = two_layers(Run.open().load(MNISTClassifier))
    assert layers is not None
    hidden, output = layers
    assert int(output.weight[:, unit].argmax()) == said
    red, _, blue = pixels(page, "unit").reshape(784, 3).T
    weights = hidden.weight[unit].detach().numpy()
    strong = np.abs(weights) > 0.02
    assert np.array_equal((red > blue)[strong], (weights > 0)[strong])  # ink on red excites


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 768, 1600])
def test_the_page_fits_every_screen_and_its_words_have_contrast(
    open_page: Callable[..., Any], width: int, scheme: str
) -> None:
    page = open_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.click("#another")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ratios = page.evaluate(CONTRASTS)
    assert len(ratios) > 30
    assert [pair for pair in ratios if pair[0] < 4.5] == []  # WCAG 2.1, AA
    named = "[...document.querySelectorAll('canvas, button')].map(e => Boolean(e.ariaLabel || e.textContent.trim()))"
    assert set(page.evaluate(named)) == {True}
    page.evaluate("document.querySelectorAll('#bars li').forEach(row => row.firstChild.textContent = 'x'.repeat(300))")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


# The contrast of each text with what is behind it, by the formula of WCAG 2.1.
CONTRASTS = """() => {
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = rgb => {
    const [r, g, b] = rgb.match(/[0-9.]+/g).map(v => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = e => {
    while (getComputedStyle(e).backgroundColor.endsWith(", 0)")) e = e.parentElement;
    return getComputedStyle(e).backgroundColor;
  };
  const texts = [...document.querySelectorAll("h1, h2, p, li, button, footer, #answer, .share")];
  return texts.filter(e => e.textContent && !e.disabled).map(e => {
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
    return [(a + .05) / (b + .05), e.outerHTML.slice(0, 80)];
  });
}"""
