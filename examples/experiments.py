"""Runs trainings for each variant and seed, and sums them up.

A file keeps the results, so a killed run goes on from there. Several machines can share the trainings: `--shard 2/4` runs
every fourth of them, from the second on, and writes a file of its own. Copy the files of all shards into one folder, and run
without `--shard` to sum them up.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import pathlib
import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from matplotlib import pyplot as plt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

Row = dict[str, Any]
COLUMNS = ("variant", "seed", "epochs", "error", "free_weights", "seconds")


class EpochSeconds(keras.callbacks.Callback):
    """Measures the seconds of each epoch. The first one compiles, so it does not count if there are others."""

    def __init__(self) -> None:
        super().__init__()
        self._seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._seconds.append(time.perf_counter() - self._start)

    @property
    def median(self) -> float:
        """Median over the epochs, 0.0 if there were none."""
        return float(np.median(self._seconds[1:] or self._seconds or [0.0]))


def trained_weights(model: keras.Model) -> int:
    """Returns how many numbers the optimizer trains."""
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


class Shard(NamedTuple):
    """A part of the trainings: every `count`-th, from `number` on, which counts from 1."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Returns the shard that "2/4" names."""
        match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
        if not match or int(match[1]) > int(match[2]):
            raise argparse.ArgumentTypeError(f"a shard is i/n, with i from 1 to n, such as 2/4. Received {text!r}")
        return cls(int(match[1]), int(match[2]))

    def file(self, file: pathlib.Path) -> pathlib.Path:
        """Returns the file for this part of the results: `file` itself if there is one part."""
        return file if self.count == 1 else file.with_suffix(f".{self.number}-of-{self.count}.csv")


WHOLE = Shard()


def run(
    file: pathlib.Path,
    variants: Iterable[str],
    seeds: Iterable[int],
    epochs: int,
    train: Callable[[str, int, int], Row],
    shard: Shard = WHOLE,
) -> list[Row]:
    """Returns a row for each variant and seed of a shard. `train` makes those that the files lack.

    Args:
        file: a CSV file with the columns `COLUMNS`, made if there is none. Files of shards beside it are read too. In the
            end the file of this part has all rows of this part.
        variants: names of what is compared.
        seeds: seeds of the trainings.
        epochs: epochs of each training. Results of other numbers of epochs stay in the file.
        train: a function of variant, seed and epochs that returns error, free weights and seconds per epoch.
        shard: the part to run.
    """
    wanted = [(variant, seed) for seed in seeds for variant in variants][shard.number - 1 :: shard.count]
    files = [file, *sorted(file.parent.glob(f"{file.stem}.*-of-*.csv"))]
    rows = {(row["variant"], row["seed"]): row for each in files for row in read(each) if row["epochs"] == epochs}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("trainings", total=len(wanted), completed=sum(key in rows for key in wanted))
        for variant, seed in (key for key in wanted if key not in rows):
            progress.update(task, description=f"{variant}, seed {seed}")
            row = {"variant": variant, "seed": seed, "epochs": epochs, **train(variant, seed, epochs)}
            rows[variant, seed] = row
            _add(shard.file(file), [row])
            progress.advance(task)
    results = [rows[key] for key in wanted]
    written = read(shard.file(file))
    _add(shard.file(file), [row for row in results if row not in written])
    return results


def read(file: pathlib.Path) -> list[Row]:
    """Returns the rows of a CSV file of results, none if there is no file."""
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        return [
            {
                "variant": row["variant"],
                **{name: int(row[name]) for name in ("seed", "epochs", "free_weights")},
                **{name: float(row[name]) for name in ("error", "seconds")},
            }
            for row in csv.DictReader(lines)
        ]


def _add(file: pathlib.Path, rows: Sequence[Row]) -> None:
    """Adds rows to a file, which a process that is killed meanwhile leaves whole."""
    new = file.with_suffix(".new")
    with new.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, COLUMNS)
        writer.writeheader()
        writer.writerows([*read(file), *rows])
    new.replace(file)


def summary(rows: Sequence[Row]) -> list[Row]:
    """Returns for each variant the mean error, its standard error, the free weights and the median seconds per epoch."""
    by_variant: dict[str, list[Row]] = {}
    for row in rows:
        by_variant.setdefault(row["variant"], []).append(row)
    return [
        {
            "variant": variant,
            "error": float(np.mean([row["error"] for row in group])),
            "standard_error": _standard_error([row["error"] for row in group]),
            "free_weights": group[0]["free_weights"],
            "seconds": float(np.median([row["seconds"] for row in group])),
            "seeds": len(group),
        }
        for variant, group in by_variant.items()
    ]


def _standard_error(values: Sequence[float]) -> float:
    """Returns the standard error of a mean, nan for a single value."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def show(console: Console, title: str, rows: Sequence[Row], file: pathlib.Path, error_name: str = "test error") -> None:
    """Prints the summary as a table, and draws errors over free weights to `file`."""
    summed = summary(rows)
    table = Table("variant", error_name, "free weights", "s/epoch", "seeds", title=title)
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for each, marker in zip(summed, itertools.cycle("osD^vP*Xhd<>p8")):
        error = f"{each['error']:.2%} ± {each['standard_error']:.2%}"
        table.add_row(each["variant"], error, f"{each['free_weights']:,}", f"{each['seconds']:.2f}", str(each["seeds"]))
        percent = 100 * each["error"], 100 * each["standard_error"]
        axes.errorbar(each["free_weights"], *percent, fmt=marker, capsize=4, label=each["variant"])
    axes.set(xlabel="free weights", ylabel=f"{error_name} in %", title=title)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    figure.savefig(file, dpi=120)
    plt.close(figure)
    console.print(table)


def parse_options(doc: str, epochs: int, seeds: int, is_shared: bool = False) -> argparse.Namespace:
    """Returns the options of the command line, epochs, seeds, out and shard, and makes the folder of results.

    Args:
        doc: docstring of the example.
        epochs: default of `--epochs`.
        seeds: default of `--seeds`.
        is_shared: whether several machines can share the trainings.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    if is_shared:
        parser.add_argument("--shard", type=Shard.parse, default=WHOLE, help="i/n: run the i-th of n parts of the trainings")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def main(
    doc: str,
    name: str,
    title: str,
    variants: Iterable[str],
    train: Callable[[str, int, int], Row],
    epochs: int,
    seeds: int,
    show: Callable[[Console, str, list[Row], pathlib.Path], None] = show,
) -> None:
    """Runs an example from the command line: trains, prints a table, and writes `name` as CSV and as a figure.

    Args:
        doc: docstring of the example.
        name: name of the files in `--out`.
        title: title of the table and the figure.
        variants: names of what is compared.
        train: as `run` takes it.
        epochs: default of `--epochs`.
        seeds: default of `--seeds`.
        show: prints the table and draws the figure to a file.
    """
    options, console = parse_options(doc, epochs, seeds, is_shared=True), Console()
    file = options.out / f"{name}.csv"
    rows = run(file, variants, range(options.seeds), options.epochs, train, options.shard)
    if options.shard == WHOLE:
        show(console, title, rows, options.out / f"{name}.png")
    else:
        console.print(
            f"{options.shard.file(file)}: {len(rows)} results. Run without --shard when all shards are in one folder."
        )
