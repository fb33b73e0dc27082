"""How well a network reads handwriting that is not MNIST's: photographed pages, other writers, fonts, drawings.

    python scripts/handwriting.py

It trains two networks, with and without the `train_transform` that scripts/README.md recommends. It prints a table of
their accuracy with and without MNIST's normal form, and what is found on pages. This takes ten minutes on two cores.
Fonts are looked for where Debian puts them:

    apt-get install fonts-{breip,bwht,comic-neue,dancingscript,dkg-handwriting}
    apt-get install fonts-{humor-sans,kaushanscript,kristi,lobster,rufscript}
"""

import argparse
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from mnist_lightning import MNISTClassifier
from mnist_lightning.cli import main
from mnist_lightning.data import PACKAGED, load_images
from mnist_lightning.data.digit_images import read_digits
from mnist_lightning.runs import Run

TRANSFORM = "--data.train_transform torchvision.transforms.v2.RandomAffine --data.train_transform.degrees 10 "
TRANSFORM += "--data.train_transform.translate [0.1,0.1]"
FONTS = "BecauseWeLearn-Regular Breip ComicNeue-Regular DancingScript-Regular dkg "
FONTS += "Humor-Sans KaushanScript-Regular Kristi lobster Rufscript010"
FOLDER = Path("/usr/share/fonts")
# Ten digits as strokes, each a row of points in 100 x 100, drawn with a thin pen.
STROKES = {
    0: ["50,5 25,20 15,50 25,82 50,95 76,80 85,48 74,18 50,5"],
    1: ["38,22 56,6 52,94"],
    2: ["20,28 32,8 60,5 76,22 68,46 20,92 50,88 84,92"],
    3: ["22,14 48,4 74,16 70,36 44,46 74,58 80,78 56,95 20,86"],
    4: ["52,5 18,60 84,58", "66,34 60,96"],
    5: ["28,8 24,44 52,40 78,56 76,80 52,95 20,86", "28,8 76,6"],
    6: ["66,5 36,30 20,66 34,93 62,92 76,72 60,54 34,60 22,72"],
    7: ["18,10 82,8 58,46 42,95", "34,52 74,50"],
    8: ["70,18 48,5 28,20 40,42 70,66 68,90 40,94 24,76 44,50 72,30 70,18"],
    9: ["74,24 52,6 26,20 30,44 56,48 74,24 70,60 56,95"],
}

Pictures = list[tuple[Image.Image, int]]


def photograph(ink: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """A photograph of a page, ``(H, W)`` in [0, 1]: a gradient of light, noise, JPEG at quality 50."""
    y, x = np.mgrid[: ink.shape[0], : ink.shape[1]]
    angle = rng.uniform(0, 2 * np.pi)
    light = np.cos(angle) * x / ink.shape[1] + np.sin(angle) * y / ink.shape[0]
    light = 0.95 - 0.5 * (light - light.min()) / max(np.ptp(light), 1)
    page = light * (1 - 0.9 * ink) + rng.normal(0, 0.03, ink.shape)
    file = io.BytesIO()
    Image.fromarray((255 * page.clip(0, 1)).astype(np.uint8)).save(file, "JPEG", quality=50)
    return Image.open(file)


def sheet(digits: Sequence[np.ndarray], columns: int, scale: int, rng: np.random.Generator) -> np.ndarray:
    """A page of digits, ``(H, W)`` in [0, 1], so many times as large, each a little shifted."""
    cell = 34 * scale
    page = np.zeros((-(-len(digits) // columns) * cell, columns * cell))
    for i, digit in enumerate(digits):
        y, x = np.array(divmod(i, columns)) * cell + rng.integers(0, 6 * scale, 2)
        page[y : y + 28 * scale, x : x + 28 * scale] = digit.repeat(scale, 0).repeat(scale, 1) / 255
    return page


def fonts() -> Pictures:
    """Ten digits of each handwriting font that is installed."""
    pictures = []
    for name in FONTS.split():
        for path in sorted(FOLDER.rglob(f"{name}.[ot]tf"))[:1]:
            font = ImageFont.truetype(str(path), 120)
            for digit in range(10):
                page = Image.new("L", (260, 260), 255)
                ImageDraw.Draw(page).text((130, 130), str(digit), 20, font, "mm")
                pictures.append((page, digit))
    return pictures


def drawings(rng: np.random.Generator) -> Pictures:
    """Photographs of thin strokes, turned a little."""
    pictures = []
    for digit, strokes in STROKES.items():
        page = Image.new("L", (600, 600))
        for stroke in strokes:
            points = [tuple(2 * float(place) + 200 for place in point.split(",")) for point in stroke.split()]
            ImageDraw.Draw(page).line(points, 255, width=5, joint="curve")
        turned = page.rotate(rng.uniform(-8, 8), Image.Resampling.BICUBIC)
        pictures.append((photograph(np.asarray(turned) / 255, rng), digit))
    return pictures


def others() -> Pictures:
    """scikit-learn's digits, 8 x 8 pixels by other writers."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pages = (Image.fromarray((15.9 * image).astype(np.uint8)) for image in digits.images)
    return list(zip(pages, digits.target.tolist(), strict=True))


def naive(picture: Image.Image) -> np.ndarray:
    """What most people try first: the whole picture, made small, with light ink."""
    small = np.asarray(picture.convert("L").resize((28, 28)))
    return small if np.median(small) < 128 else 255 - small


def normal(picture: Image.Image) -> np.ndarray:
    """The only digit on a page, or nothing if there are several."""
    found = read_digits(picture)
    return found[0][1] if len(found) == 1 else np.zeros((28, 28), np.uint8)


def train(folder: Path, *flags: str) -> MNISTClassifier:
    """The network of a run of ``fit``."""
    main(["fit", "--trainer.default_root_dir", str(folder), *flags])
    return Run.open(root=folder).load(MNISTClassifier).eval()


@torch.no_grad()
def accuracy(network: MNISTClassifier, images: Sequence[np.ndarray], targets: Sequence[int]) -> float:
    """The share of images, each ``(28, 28)`` uint8, that a network reads."""
    logits = network(torch.from_numpy(np.array(images))[:, None] / 255)
    return float((logits.argmax(1) == torch.tensor(targets)).float().mean())


def compare(images: np.ndarray, targets: np.ndarray, networks: Sequence[MNISTClassifier]) -> None:
    """Print the accuracy of each network on each kind of picture, with and without the normal form."""
    rng = np.random.default_rng(0)
    pages = [sheet([image], 1, 8, rng) for image in images]
    made = {
        "test images, as they are": [Image.fromarray(image) for image in images],
        "the same, as photographed pages": [photograph(page, rng) for page in pages],
        "the same, as pages light on dark": [Image.fromarray((255 * page).astype(np.uint8)) for page in pages],
    }
    kinds: dict[str, Pictures] = {
        **{name: list(zip(pictures, targets.tolist(), strict=True)) for name, pictures in made.items()},
        "scikit-learn's digits": others(),
        "handwriting fonts": fonts(),
        "drawings with a thin pen": drawings(rng),
    }
    print("| pictures | number | naive | normal form | naive, shifted | normal form, shifted |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, pictures in kinds.items():
        if not pictures:
            print(f"{name}: none is installed, left out")
            continue
        answers = [answer for _, answer in pictures]
        forms = [[form(picture) for picture, _ in pictures] for form in (naive, normal)]
        figures = [accuracy(network, form, answers) for network in networks for form in forms]
        print(f"| {name} | {len(answers):,} | " + " | ".join(f"{100 * figure:.1f}" for figure in figures) + " |")


def count(images: np.ndarray, targets: np.ndarray, network: MNISTClassifier) -> None:
    """Print how many digits are found on pages of many and of none, and how many of them are read."""
    rng = np.random.default_rng(1)
    for number, columns, tries in ((10, 10, 20), (40, 8, 10)):
        right, seen, answers = 0, list[np.ndarray](), list[int]()
        for _ in range(tries):
            chosen = rng.choice(len(images), number)
            found = read_digits(photograph(sheet([*images[chosen]], columns, 4, rng), rng))
            if len(found) == number:
                right += 1
                seen += [image for _, image in found]
                answers += targets[chosen].tolist()
        print(
            f"{right} of {tries} pages of {number} digits found whole, accuracy {accuracy(network, seen, answers):.3f}"
        )
    empty = {"photographs": np.zeros((600, 800)), "photographs of ruled paper": np.zeros((600, 800))}
    empty["photographs of ruled paper"][20::40] = 0.5
    for name, page in empty.items():
        blank = sum(not read_digits(photograph(page, rng)) for _ in range(50))
        print(f"{blank} of 50 empty {name} said to be empty")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    pixels, digits = (part[:1000].numpy() for part in load_images("MNIST", PACKAGED, train=False))
    with tempfile.TemporaryDirectory() as scratch:
        plain = train(Path(scratch, "plain"))
        shifted = train(Path(scratch, "shifted"), *TRANSFORM.split())
    compare(pixels, digits, [plain, shifted])
    count(pixels, digits, plain)
