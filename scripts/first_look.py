# %% [markdown]
# # A first look at a neural network, retold
#
# Section 2.1 of François Chollet's *Deep Learning with Python* (2017) trains a small network on MNIST with Keras.
# This is the same walk on PyTorch, twice: once by hand, with nothing hidden, and once with the package, on PyTorch
# Lightning. Both get the same numbers, so you see what Lightning takes off your hands.
#
# Run it as a script (`python first_look.py`, a minute; `--epochs 1` is quicker), or open it as a notebook in VS Code
# or with jupytext. It needs nothing but the installed package, and writes its pictures into a folder `first_look` in
# the folder that it is started in: `samples.png`, `curves.png`, `confusion_matrix.png`, `mistakes.png` and
# `first_layer.png`.

# %%
"""The tutorial, retold: by hand, and with the package."""

import argparse
import gzip
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import nn

from mnist_lightning import MNISTClassifier, MNISTDataModule
from mnist_lightning.cli import main, quiet
from mnist_lightning.results import Report
from mnist_lightning.results.curves import curves_picture
from mnist_lightning.results.inspection import describe_data, samples_picture
from mnist_lightning.results.style import save
from mnist_lightning.runs import Run
from mnist_lightning.runs.history import MetricsCSV
from mnist_lightning.runs.progress import EpochProgress

NOTEBOOK = "ipykernel" in sys.modules
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=5, help="passes over the training images (the tutorial's: 5)")
EPOCHS = parser.parse_args([] if NOTEBOOK else None).epochs
if EPOCHS < 1:
    parser.error(f"argument --epochs: must be at least 1, got {EPOCHS}")
SEED = 0  # that of `python -m mnist_lightning fit`
PICTURES = Path("first_look")


def show(*pictures):
    """Say where the pictures are; in a notebook, show them, too."""
    for picture in pictures:
        print(f"wrote {picture}")
        if NOTEBOOK:
            from IPython.display import display
            from PIL import Image

            with Image.open(picture) as image:  # half as wide and with 64 colours, it takes a sixth of the bytes
                display(image.convert("RGB").resize((800, 800 * image.height // image.width)).quantize(64))


# %% [markdown]
# ## Load
#
# The tutorial's `mnist.load_data()` downloads; here the four files are in the package, and torchvision reads them.
#
# **Where MNIST comes from.** Yann LeCun, Corinna Cortes and Christopher J. C. Burges mixed it from two collections of
# the National Institute of Standards and Technology, written by employees of the Census Bureau (NIST's Special
# Database 3) and by high-school students (Special Database 1), half and half in the training and in the test images,
# because the employees' digits are much the easier ones [1, 2]. NIST's black-and-white images were scaled, keeping
# their aspect ratio, to fit a box of 20 x 20 pixels, which gave them grey edges, and were placed in a field of
# 28 x 28 so that their centre of mass lies in its centre [1, 2]. About 250 people wrote the training images, and none
# of them wrote a test image [1].
#
# 1. Y. LeCun, C. Cortes, C. J. C. Burges: *The MNIST database of handwritten digits*, 1998,
#    http://yann.lecun.com/exdb/mnist/
# 2. Y. LeCun, L. Bottou, Y. Bengio, P. Haffner: *Gradient-based learning applied to document recognition*,
#    Proceedings of the IEEE 86(11), 1998, pages 2278-2324, section III.A
#
# **The other data sets.** Keras offered seven in the tutorial's time:
#
# | `keras.datasets` | what it is | where it is at home today |
# | --- | --- | --- |
# | `mnist` | 70,000 handwritten digits | `torchvision.datasets.MNIST`, and in this package |
# | `fashion_mnist` | 70,000 articles of clothing, in MNIST's format | `torchvision.datasets.FashionMNIST` |
# | `cifar10` | 60,000 colour photographs of 32 x 32 pixels in 10 classes | `torchvision.datasets.CIFAR10` |
# | `cifar100` | the same size, in 100 classes | `torchvision.datasets.CIFAR100` |
# | `imdb` | 50,000 film reviews, for or against | Hugging Face: `datasets.load_dataset("stanfordnlp/imdb")` |
# | `reuters` | 11,228 newswires on 46 topics, from Reuters-21578 | NLTK: `nltk.corpus.reuters` (10,788 on 90 topics) |
# | `boston_housing` | 506 house prices around Boston | instead: `sklearn.datasets.fetch_california_housing` |
#
# The four of images work in this package: `MNISTDataModule(dataset="FashionMNIST", data_dir=...)`, with their files
# in a folder of yours.
#
# scikit-learn withdrew the Boston prices in its version 1.2: one of their variables assumes that people pay for racial
# segregation.

# %%
data = MNISTDataModule(seed=SEED)
data.setup("fit")
data.setup("test")
train_images, train_labels = data.train_dataset.images, data.train_dataset.targets
test_images, test_labels = data.test_dataset.images, data.test_dataset.targets

# %% [markdown]
# ## Look
#
# The tutorial looks at shapes and labels. `python -m mnist_lightning inspect` does so for any split.

# %%
print(describe_data(data))
samples = samples_picture(train_images.squeeze(1), train_labels)
show(save(samples, PICTURES / "samples.png"))

# %% [markdown]
# ## Build
#
# Two dense layers, as in the tutorial. `Flatten` does what `train_images.reshape((60000, 28 * 28))` did. Two things
# differ from Keras. PyTorch's `Linear` starts from other random numbers than Keras's `Dense`, so they are drawn anew.
# And there is no `softmax` at the end: the network returns *logits*, because PyTorch's loss takes the softmax itself,
# where it can be done without rounding small probabilities to zero.


# %%
def build():
    """784 -> 512 ReLU -> 10: 784 * 512 + 512 + 512 * 10 + 10 = 407,050 parameters."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 512), nn.ReLU(), nn.Linear(512, 10))
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)  # Keras calls it Glorot uniform
            nn.init.zeros_(layer.bias)
    return network


torch.manual_seed(SEED)
network = build()
print(f"\nparameters: {sum(parameter.numel() for parameter in network.parameters()):,}")

# %% [markdown]
# ## Compile: three choices
#
# Keras asks for three things in `network.compile(...)`. In PyTorch they are three objects.
#
# | choice | what it says | Keras | here |
# | --- | --- | --- | --- |
# | loss | how wrong the network is; training makes it smaller | `categorical_crossentropy` | `F.cross_entropy` |
# | optimizer | how each weight moves, given the loss's slope | `rmsprop` | `torch.optim.RMSprop` |
# | metrics | how good the network is, for us to read | `accuracy` | share of `logits.argmax(1) == labels` |
#
# The optimizer's constants are Keras's: `lr=1e-3, alpha=0.9, eps=1e-7`. PyTorch's own (1e-2, 0.99, 1e-8) would train
# another network.
#
# ### Why the labels needn't be one-hot
#
# "We also need to categorically encode the labels", the tutorial says, and leaves it at that. Here is the rest:
# ... because Keras's `categorical_crossentropy` compares two probability distributions over the ten digits, the
# network's `p` and the label's `t`, by `-(t[0] log p[0] + ... + t[9] log p[9])`, and so it wants the label as ten
# numbers too: a 1 for the digit, and nine 0s. But the nine 0s delete nine of the ten terms. All that is left is
# `-log p[label]`, and to pick that out the label itself is enough. `F.cross_entropy` takes it so, as does Keras's
# `sparse_categorical_crossentropy`: the same number, without a table of 600,000 entries of which nine tenths are 0.

# %%
images, labels = train_images[:128] / 255, train_labels[:128]
p = network(images).softmax(dim=1)
t = F.one_hot(labels, 10)  # what the tutorial's `to_categorical` makes
with_one_hot = -(t * p.log()).sum(dim=1).mean()
with_indices = F.cross_entropy(network(images), labels)
print(f"loss with one-hot labels {with_one_hot:.6f}, with indices {with_indices:.6f}")
assert torch.isclose(with_one_hot, with_indices)

# %% [markdown]
# ## Fit
#
# What `network.fit(train_images, train_labels, epochs=5, batch_size=128)` does, with nothing hidden. The order of the
# images is drawn anew in every epoch: `data.train_order(epoch)` is the package's. Loss and accuracy are, as in Keras,
# means over the epoch *while the weights move*.


# %%
def train(network, epochs):
    """Train, and return the mean loss and the accuracy of every epoch."""
    optimizer = torch.optim.RMSprop(network.parameters(), lr=1e-3, alpha=0.9, eps=1e-7)
    history = []
    for epoch in range(epochs):
        loss_sum = right = 0
        for batch in torch.as_tensor(data.train_order(epoch)).split(128):  # 469 batches, the last of 96
            images, labels = train_images[batch] / 255, train_labels[batch]
            logits = network(images)
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(batch)
            right += (logits.argmax(dim=1) == labels).sum().item()
        history.append((loss_sum / len(train_images), right / len(train_images)))
        print(f"Epoch {epoch + 1}/{epochs}  loss {history[-1][0]:.4f}  acc {history[-1][1]:.4f}")
    return history


print("\nBy hand")
history = train(network, EPOCHS)

# %% [markdown]
# ## Evaluate
#
# On images that the network has never seen. The accuracy is lower than in training: the network *overfits*.

# %%
with torch.no_grad():
    logits = network(test_images / 255)
test_acc = (logits.argmax(dim=1) == test_labels).float().mean().item()
print(f"test_loss {F.cross_entropy(logits, test_labels):.4f}  test_acc {test_acc:.4f}")

# %% [markdown]
# ## The same with the package
#
# `MNISTClassifier` is the network, the three choices and one method for a step; `MNISTDataModule` is the data and its
# order; Lightning's `Trainer` is the loop. From the same seed it starts with the same weights. It is held to the CPU
# here, because a GPU adds up in another order.

# %%
print("\nWith the package")
torch.manual_seed(SEED)
model = MNISTClassifier()
log = MetricsCSV()
with quiet():  # no adverts, nor remarks on a loader that needs no workers
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=log,
        callbacks=[EpochProgress()],
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
tested = trainer.callback_metrics
print(f"test_loss {tested['test_loss']:.4f}  test_acc {tested['test_acc']:.4f}")

# %% [markdown]
# ### Are they the same?
#
# To the last bit, on most machines: the same start, the same order and the same arithmetic.

# %%
print("\nepoch   loss by hand   with the package    acc by hand   with the package")
for epoch, ((loss, acc), row) in enumerate(zip(history, log.rows, strict=False), start=1):
    print(f"{epoch:>5}{loss:>15.6f}{row['train_loss']:>19.6f}{acc:>15.6f}{row['train_acc']:>19.6f}")
    assert abs(loss - row["train_loss"]) < 1e-5
    assert abs(acc - row["train_acc"]) < 1e-5
assert abs(test_acc - float(tested["test_acc"])) < 1e-5
pairs = zip(network.parameters(), model.parameters(), strict=True)
apart = max((mine - theirs).abs().max().item() for mine, theirs in pairs)
print(f"largest difference between two weights: {apart:g}")

# %% [markdown]
# What Lightning took off our hands is not the 20 lines of the loop. It is what comes next: a GPU
# (`accelerator="gpu"`), several of them, bfloat16, a checkpoint to resume from after a crash, early stopping, a
# logger, a progress bar. Each is an argument of `Trainer`, and the network needn't know of it.
#
# ## See the curves, and the mistakes
#
# `python -m mnist_lightning fit` and `test` leave these pictures in the run's folder.

# %%
show(save(curves_picture(log.rows), PICTURES / "curves.png"))

report = Report.of(model, data.test_dataloader())
print(f"\n{report.table()}")
show(*report.draw(PICTURES))

# %% [markdown]
# ## The same on clothes
#
# Fashion-MNIST has the form of MNIST: ten articles of clothing instead of ten digits. They are harder to tell apart.
# `main` takes what you would type behind `python -m mnist_lightning`. This cell runs in a notebook, where Debian's
# package `dataset-fashion-mnist` is installed.

# %%
CLOTHES = Path("/usr/share/datasets/fashion-mnist")
if NOTEBOOK and CLOTHES.is_dir():
    raw = PICTURES / "FashionMNIST" / "raw"  # where torchvision would have put the files
    raw.mkdir(parents=True, exist_ok=True)
    for packed in CLOTHES.glob("*.gz"):
        (raw / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    flags = ["--data.dataset=FashionMNIST", f"--data.data_dir={PICTURES}", f"--trainer.max_epochs={EPOCHS}"]
    root = f"--trainer.default_root_dir={PICTURES}"
    main(["fit", *flags, root])
    main(["test", root])
    show(Run.open(root=PICTURES).folder / "mistakes.png")
