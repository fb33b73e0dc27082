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
from mnist_lightning.data.handwriting import normal_form
from mnist_lightning.results import draw_page
from mnist_lightning.runs import Run

RUN = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "5", "--model.hidden_size", "16"]
PAGE = Path("lightning_logs/version_0/draw.html")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is opened in a browser, instead of opening it."""
    addresses: list[str] = []
    monkeypatch.setattr(webbrowser, "open", addresses.append)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    return addresses


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


@pytest.mark.usefixtures("_in_an_empty_folder")
def test_the_page_is_one_file_that_asks_nothing_of_the_network(
    capsys: pytest.CaptureFixture[str], opened: list[str]
) -> None:
    main(["fit", *RUN[:4], "--trainer.enable_progress_bar", "false"])
    main(["draw"])
    assert f"Written  {PAGE}" in capsys.readouterr().out
    assert opened == []  # no display
    text = PAGE.read_text("utf-8")
    assert len(text) < 1_200_000
    assert not re.search(r"https?:|//\w+\.\w+/|@import|\bsrc=|fetch\(|import\(|url\(", text)
    assert re.findall("<link.*", text) == ['<link rel="icon" href="data:,">']
    assert re.search(r"default-src 'none'; img-src data:; script-src 'sha256-[\w+/=]+'; style-src 'sha256-", text)
    assert "@TITLE@" not in text
    assert "@DATA@" not in text
    template = Path(__file__).parent.parent / "mnist_lightning" / "results" / "draw.template.html"
    assert len(template.read_text("utf-8").splitlines()) <= 300


@pytest.mark.usefixtures("_in_an_empty_folder")
def test_the_page_is_opened_where_there_is_a_display(
    opened: list[str], monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    main(["fit", *RUN])
    with monkeypatch.context() as context:
        context.setattr(draw_page, "MOST_WEIGHTS", 12_703)
        assert "it has 12,704 weights, more than 12,703" in fails("draw")
    monkeypatch.setenv("DISPLAY", ":0")
    main(["draw", "--no_open"])
    assert opened == []
    main(["draw"])
    assert opened == [PAGE.resolve().as_uri()]


@pytest.mark.usefixtures("_in_an_empty_folder")
def test_what_cannot_be_drawn_for_is_one_line(fails: Callable[..., str]) -> None:
    assert "no fit run with a checkpoint" in fails("draw", "--no_open")
    root = ["--trainer.default_root_dir", "normalised"]
    normalised = ["--data.transform", "torchvision.transforms.v2.Normalize"]
    normalised += ["--data.transform.mean", "[0.1]", "--data.transform.std", "[0.3]"]
    main(["fit", *RUN, *root, *normalised])
    assert "was trained with a transform" in fails("draw", *root)
    for model_class, why in ((Normed, "it has other layers"), (Inverted, "a probability would differ by")):
        root = ["--trainer.default_root_dir", model_class.__name__]
        main(["fit", *RUN[:4], *root], model_class=model_class)
        message = fails("draw", *root, model_class=model_class)
        assert f"{model_class.__name__} is another ({why}" in message
        assert message.endswith("use 'export'\n")
    main(["fit", *RUN])
    for wrong, says in {
        "--no_open maybe": "maybe",
        "--out page.html": "--out",
        "--ckpt_path missing.ckpt": "no checkpoint at 'missing.ckpt'",
        "--model.hidden_size 8": "contradicts the checkpoint's 16",
        "--data.data_dir elsewhere": "elsewhere",
    }.items():
        assert says in fails("draw", *wrong.split()), wrong
    Path("elsewhere.ckpt").write_bytes(Run.newest().checkpoint.read_bytes())
    Path("draw.html").write_text("a page of the user's own")
    assert "would be replaced" in fails("draw", "--ckpt_path", "elsewhere.ckpt")


@pytest.mark.usefixtures("_in_an_empty_folder")
def test_a_class_cannot_be_code() -> None:
    class Hostile(MNISTDataModule):
        classes = ("</script><script>alert(1)</script>", *"123456789")

    main(["fit", *RUN], data_class=Hostile)
    main(["draw", "--no_open"], data_class=Hostile)
    text = PAGE.read_text("utf-8")
    assert text.count("<script") == text.count("</script>") == 2
    assert "alert(1)" in text


# -------------------------------------------------------------------------- in Chromium

# Strokes of ten digits, in parts of the pad.
DIGITS: dict[int, list[list[tuple[float, float]]]] = {
    0: [[(0.5, 0.15), (0.33, 0.25), (0.28, 0.5), (0.35, 0.75), (0.5, 0.85), (0.66, 0.75), (0.72, 0.5), (0.66, 0.25)]],
    1: [[(0.52, 0.15), (0.5, 0.5), (0.48, 0.85)]],
    2: [[(0.3, 0.32), (0.38, 0.18), (0.58, 0.16), (0.68, 0.32), (0.55, 0.55), (0.28, 0.82), (0.5, 0.8), (0.75, 0.82)]],
    3: [[(0.3, 0.2), (0.55, 0.15), (0.68, 0.28), (0.5, 0.47), (0.68, 0.6), (0.66, 0.78), (0.48, 0.86), (0.28, 0.78)]],
    4: [[(0.32, 0.15), (0.3, 0.5), (0.7, 0.5)], [(0.68, 0.15), (0.64, 0.85)]],
    5: [[(0.7, 0.17), (0.36, 0.17), (0.33, 0.45), (0.55, 0.43), (0.68, 0.58), (0.62, 0.78), (0.45, 0.85), (0.3, 0.78)]],
    6: [[(0.6, 0.14), (0.42, 0.35), (0.33, 0.65), (0.45, 0.84), (0.62, 0.78), (0.62, 0.6), (0.48, 0.54), (0.35, 0.66)]],
    7: [[(0.27, 0.2), (0.5, 0.2), (0.72, 0.2), (0.6, 0.45), (0.47, 0.85)]],
    8: [[(0.62, 0.22), (0.45, 0.16), (0.36, 0.3), (0.5, 0.46), (0.64, 0.64), (0.55, 0.83), (0.42, 0.83), (0.36, 0.66)]],
    9: [[(0.64, 0.3), (0.5, 0.18), (0.37, 0.3), (0.42, 0.46), (0.56, 0.46), (0.64, 0.3), (0.62, 0.55), (0.56, 0.85)]],
}
DIGITS[0][0].append(DIGITS[0][0][0])
DIGITS[6][0].append((0.34, 0.7))
DIGITS[8][0] += [(0.5, 0.46), (0.63, 0.3), (0.62, 0.22)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run of the tutorial's network and its page; it is the current folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("draw"))
        main(["fit", "--trainer.max_epochs", "3", "--trainer.enable_progress_bar", "false"])
        main(["draw", "--no_open"])
        yield Path.cwd()


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
def open_page(browser: Any, trained: Path) -> Iterator[Callable[..., Any]]:
    """Opens the page. At the end, there was no other request and no message."""
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


def draw(page: Any, strokes: list[list[tuple[float, float]]]) -> None:
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


@pytest.mark.slow
def test_the_page_computes_the_networks_probabilities(open_page: Callable[..., Any], mnist: Any) -> None:
    images = mnist("t10k")[0][:500].reshape(-1, 784)
    page = open_page()
    got = page.evaluate("images => images.map(x => forward(Float32Array.from(x, v => v / 255)).p)", images.tolist())
    model = Run.newest().load(MNISTClassifier).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(images).float() / 255).softmax(1)
    assert np.abs(np.array(got) - expected.numpy()).max() < 1e-3


@pytest.mark.slow
@pytest.mark.usefixtures("_in_an_empty_folder")
def test_a_deeper_network_is_computed_and_shown(browser: Any, mnist: Any) -> None:
    main(["fit", *RUN[:4]], model_class=Deep)
    main(["draw", "--no_open"], model_class=Deep)
    image = mnist("t10k")[0][:1].reshape(-1, 784)
    page = browser.new_page()
    page.goto(PAGE.resolve().as_uri())
    got = page.evaluate("x => forward(Float32Array.from(x, v => v / 255)).p", image[0].tolist())
    model = Run.newest().load(Deep).eval()
    with torch.no_grad():
        assert np.allclose(got, model(torch.from_numpy(image).float() / 255).softmax(1)[0], atol=1e-3)
        later = model.network[5].weight @ model.network[3].weight
    assert np.allclose(page.evaluate("Array.from(voice)"), later.flatten(), atol=1e-3)
    page.close()


def test_the_strokes_in_this_file_are_of_ten_digits() -> None:
    assert sorted(DIGITS) == list(range(10))


@pytest.mark.slow
def test_ten_digits_by_mouse_and_one_by_touch_are_read(open_page: Callable[..., Any]) -> None:
    page = open_page()
    read = {}
    for digit, strokes in DIGITS.items():
        draw(page, strokes)
        read[digit] = page.inner_text("#answer")
        assert np.nansum(shown(page)) == pytest.approx(1, abs=0.006)
        page.click("#clear")
    assert read == {digit: str(digit) for digit in DIGITS}
    phone = open_page(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    box = phone.locator("#pad").bounding_box()
    finger = phone.context.new_cdp_session(phone)
    places = [{"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]} for x, y in DIGITS[3][0]]
    for kind, place in [("touchStart", places[0]), *(("touchMove", place) for place in places[1:])]:
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [place]})
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    phone.wait_for_function("document.querySelector('#answer').textContent === '3'", timeout=5000)
    assert phone.evaluate("scrollY") == 0  # the page stays where it is while a finger draws


@pytest.mark.slow
def test_an_empty_pad_claims_nothing_and_strokes_can_be_taken_back(open_page: Callable[..., Any]) -> None:
    page = open_page()

    def is_empty() -> bool:
        return page.inner_text("#answer") == "" and bool(np.isnan(shown(page)).all())

    assert is_empty()
    draw(page, DIGITS[1])
    draw(page, DIGITS[7])
    two = shown(page)
    page.click("#undo")
    assert page.inner_text("#answer") == "1"
    assert not np.array_equal(two, shown(page))
    page.keyboard.press("Control+z")
    assert is_empty()
    draw(page, DIGITS[1])
    page.keyboard.press("Escape")
    assert is_empty()
    page.click("#undo")  # brings back what Escape has cleared
    assert page.inner_text("#answer") == "1"
    page.click("#clear")
    assert is_empty()
    draw(page, [*DIGITS[1], [(0.5, 0.5), (3, 0.5)]])  # the pointer leaves the pad: the pen stays as wide as it was
    assert 40 < page.evaluate("pen") <= 72
    page.click("#clear")
    assert page.evaluate("document.activeElement.id") == "undo"  # for the keyboard: Clear itself is disabled now
    while page.is_enabled("#undo"):
        page.click("#undo")
    assert page.evaluate("document.activeElement.id") == "another"
    page.click("#another")
    assert page.inner_text("#answer") != ""
    assert "The network is wrong" in page.inner_text("#note")
    draw(page, DIGITS[1])  # takes the place of the test image
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
def test_a_hidden_unit_shows_its_weights_and_what_it_speaks_for(open_page: Callable[..., Any]) -> None:
    page = open_page()
    draw(page, DIGITS[3])
    assert "adds most to the answer 3" in page.inner_text("#which")
    page.locator("#units").focus()
    page.keyboard.press("ArrowDown")
    unit = int(re.search(r"Unit (\d+) speaks most for (\d)", page.inner_text("#which"))[1])
    said = int(re.search(r"speaks most for (\d)", page.inner_text("#which"))[1])
    model = Run.newest().load(MNISTClassifier)
    assert int(model.output_layer.weight[:, unit].argmax()) == said
    red, _, blue = pixels(page, "unit").reshape(784, 3).T
    weights = model.hidden_layer.weight[unit].detach().numpy()
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


def pixels(page: Any, name: str) -> np.ndarray:
    """The pixels of one of the page's canvases, ``(H, W, 3)`` uint8."""
    png = base64.b64decode(page.evaluate(f"$('{name}').toDataURL().split(',')[1]"))
    return np.array(Image.open(io.BytesIO(png)).convert("RGB"))


@pytest.mark.slow
def test_the_pages_normal_form_is_pythons(open_page: Callable[..., Any]) -> None:
    page = open_page()
    for strokes in DIGITS.values():
        page.keyboard.press("Escape")
        draw(page, strokes)
        ours = 255 - pixels(page, "seen")[..., 0].astype(int)  # ink is dark
        theirs = normal_form(1 - pixels(page, "pad")[..., 0] / 255).astype(int)
        assert ours.max() > 200
        assert np.abs(ours - theirs).max() <= 1


@pytest.mark.slow
def test_predict_reads_the_saved_picture_to_the_same_answer(open_page: Callable[..., Any], tmp_path: Path) -> None:
    page = open_page()
    said, probabilities = [], []
    for digit, strokes in DIGITS.items():
        page.keyboard.press("Escape")
        draw(page, strokes)
        with page.expect_download() as download:
            page.click("#save")
        download.value.save_as(tmp_path / f"{digit}.png")
        said.append(page.inner_text("#answer"))
        probabilities.append(shown(page))
    main(["predict", str(tmp_path)])
    with (PAGE.parent / "pictures.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["prediction"] for row in rows] == said
    read = np.array([[float(row[f"p{digit}"]) for digit in range(10)] for row in rows])
    assert np.abs(read - np.array(probabilities)).max() < 0.05
