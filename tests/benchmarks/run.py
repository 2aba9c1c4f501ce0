"""Runs the benchmarks, prints tables of ratios, and writes them to `out/bench`: `python tests/benchmarks/run.py --help`.

Each way of running is measured in a process of its own, with its threads pinned to as many cores.
"""

import argparse
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text
import matplotlib.pyplot as plt
from machines import machine
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
OUT = HERE.parent.parent / "out" / "bench"
WAYS = ("jax", "tensorflow jit", "tensorflow", "torch")
SECTIONS = (
    "convolutions",
    "special",
    "training",
    "projection",
    "eager",
    "roofline",
    "memory stock",
    "memory tied",
    "growth",
    "dimensions",
    "strides",
    "torch.compile",
    "equivariant",
    "compile",
)
OF_TORCH = ("torch.compile", "equivariant")
OF_ALL_THREADS = ("convolutions", "strides", "training", "roofline")
COMPILED_NETWORKS = ("stock", "kernel", "auto", "group_sums")
EQUIVARIANT = ("e2cnn", "e2cnn, full basis", "parameterization", "constraint", "stock Keras", "stock torch")  # see peers.py
EQUIVARIANT_CASES = (4, 5, 8)  # those whose memory is measured: p4m with three layers, and the wide layer
console = Console(width=150)


def main():
    """Measures what the arguments choose."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    chosen = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    results = {section: [] for section in SECTIONS}
    for threads in chosen.threads:
        for way in chosen.ways:
            for section in chosen.sections:
                if section in OF_TORCH and way != "torch":
                    continue
                if section == "compile":
                    results[section] += compile_times(way, threads) if threads == min(chosen.threads) else []
                elif threads == min(chosen.threads) or section in OF_ALL_THREADS:
                    results[section] += measured(way, threads, section)
                    if section == "equivariant":
                        results[section] += equivariant_memory(threads)
                (OUT / "bench.json").write_text(json.dumps({"machine": machine(), **results}, indent=1))
    report(results)
    for plot, section in ((plot_speed_up, "convolutions"), (plot_growth, "growth")):
        if results[section]:
            plot(results[section])
    console.print(f"measured on {machine()}; written to {OUT}")


def compile_times(way, threads):
    """Returns the rows of compile times where XLA compiles, each measured in a process of its own."""
    choices = product(("training", "forward"), COMPILED_NETWORKS) if way in ("jax", "tensorflow jit") else ()
    return [row for choice in choices for row in measured(way, threads, "compile", *choice)]


def equivariant_memory(threads):
    """Returns the rows of the memory of equivariant networks, each measured in a process of its own."""
    choices = product(("training", "inference"), map(str, EQUIVARIANT_CASES), EQUIVARIANT)
    return [row for choice in choices for row in measured("torch", threads, "equivariant memory", *choice)]


def measured(way, threads, section, *arguments):
    """Returns the rows of a section, measured in a process of its own."""
    file = OUT / "part.json"
    file.unlink(missing_ok=True)
    console.print(f"[dim]{way}, {threads} threads: {', '.join((section, *arguments))}[/]")
    command = [sys.executable, str(HERE / "measure.py"), way, str(threads), section, str(file), *arguments]
    # The C library gives freed memory back only with a threshold of its own: else peaks would not be seen.
    kept = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    # Without oneDNN, TensorFlow counts memory in this allocator alone.
    counted = {"MALLOC_MMAP_THRESHOLD_": "131072", "TF_CPU_ALLOCATOR_USE_BFC": "1"}
    environment = {**kept, **(counted if "memory" in section else {})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        console.print(done.stderr[-2000:], style="red", markup=False)
    return json.loads(file.read_text()) if file.exists() else []


def table(title, columns, rows):
    """Prints a table."""
    grid = Table(*columns, title=title)
    for row in rows:
        grid.add_row(*map(str, row))
    console.print(grid)


def spread(ratio):
    """Returns a ratio with its quartiles."""
    return f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})" if ratio else ""


def limit(row, roofline):
    """Returns the speed-up forward if products ran at the peak of matrix products and sums at that of copies in the cache."""
    rates = [one for one in roofline if (one["way"], one["threads"]) == (row["way"], row["threads"])]
    if not rates:
        return ""
    products = max(one["rate"] for one in rates if one["unit"] == "GFLOP/s")
    copies = max(one["rate"] for one in rates if one["unit"] == "GB/s")
    seconds = 2e-9 * row["products"] / products + 1e-9 * row["moved_bytes"] / (2 * copies)
    return f"{1e-3 * row['forward_ms']['stock'] / seconds:.1f}"


def report(results):
    """Prints all tables."""
    console.print(machine())
    columns = ("way", "threads", "case", "k^2/K", "limit", "forward", "forward + gradients", "auto", "rule")
    for section, taps in (
        ("convolutions", ()),
        ("dimensions", ()),
        ("strides", ()),
        ("special", ("forward_taps", "training_taps")),
    ):
        table(
            f"{section}: tied convolution, times faster than the stock one with the expanded kernel (quartiles)",
            (*columns[:-2], *(name.replace("_", " by ") for name in taps), *columns[-2:]),
            [
                (
                    *(row[name] for name in ("way", "threads", "case")),
                    f"{row['saving']:.2f}",
                    limit(row, results["roofline"]),
                    spread(row["forward"]),
                    spread(row.get("training")),
                    *(spread(row.get(name)) for name in taps),
                    "group sums" if row["pays"] else "kernel",
                    "fitted" if row["is_fitted"] else "held out",
                )
                for row in results[section]
            ],
        )
    table(
        "torch.compile: compiled group sums, times faster than the compiled stock layer (quartiles)",
        ("case", "k^2/K", "forward", "forward + gradients"),
        [
            (row["case"], f"{row['saving']:.2f}", spread(row["forward"]), spread(row["training"]))
            for row in results["torch.compile"]
        ],
    )
    table(
        "training: time of a step of a small residual network, relative to the stock network (quartiles)",
        ("way", "threads", "network", "kernels", "time", "ms"),
        [
            (*(row[key] for key in ("way", "threads", "network", "name")), spread(row["time"]), f"{row['step_ms']:.0f}")
            for row in results["training"]
        ],
    )
    table(
        "projection: time relative to a copy of the kernel's memory",
        ("way", "kernel", "copies", "ms"),
        [(row["way"], row["kernel"], f"{row['copies']:.1f}", f"{row['project_ms']:.1f}") for row in results["projection"]],
    )
    table(
        "eager: time of calls and steps relative to stock layers, of projections to one gather of as many rows",
        ("way", "what", "layers", "relative", "us"),
        [
            (row["way"], row["what"], name, f"{row['relative'][name]:.2f}", f"{micros:.0f}")
            for row in results["eager"]
            for name, micros in row["micros"].items()
        ],
    )
    table(
        "roofline: products of matrices, and copies of memory",
        ("way", "what", "rate"),
        [(row["way"], row["what"], f"{row['rate']:.0f} {row['unit']}") for row in results["roofline"]],
    )
    table(
        "memory: peak of training steps of the radial 7x7 network",
        ("way", "network", "MB"),
        [(row["way"], row["name"], f"{row['megabytes']:.0f}") for row in results["memory stock"] + results["memory tied"]],
    )
    stock = {(row["way"], row["what"]): row["seconds"] for row in results["compile"] if row["name"] == "stock"}
    table(
        "compile: a ResNet-18 with 5x5 dihedral kernels, the first step less the second, relative to the stock network",
        ("way", "what", "kernels", "seconds", "relative"),
        [
            (*(row[key] for key in ("way", "what", "name")), f"{row['seconds']:.1f}", f"{row['seconds'] / base:.2f}")
            for row in results["compile"]
            if (base := stock.get((row["way"], row["what"])))
        ],
    )
    equivariant = results["equivariant"]
    table(
        "equivariant: training steps and inference, times faster than e2cnn (quartiles)",
        ("case", "what", "network", "free weights", "ms", "times faster"),
        [
            (*(row[key] for key in ("case", "what", "name", "free_weights")), f"{row['ms']:.1f}", spread(row["ratio"]))
            for row in equivariant
            if "ms" in row
        ],
    )
    table(
        "equivariant: peak memory beyond the built network",
        ("case", "what", "network", "MB"),
        [
            (*(row[key] for key in ("case", "what", "name")), f"{row['megabytes']:.1f}")
            for row in equivariant
            if "megabytes" in row
        ],
    )


def plot_speed_up(rows):
    """Draws the speed-up against the saving of products, both logarithmic, with the line where both are equal."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    for axis, name in zip(axes, ("forward", "training"), strict=True):
        for way in sorted({row["way"] for row in rows}):
            own = [row for row in rows if row["way"] == way and row["threads"] == min(one["threads"] for one in rows)]
            axis.scatter([row["saving"] for row in own], [row[name]["median"] for row in own], s=18, label=way)
        axis.plot([1, 6], [1, 6], color="gray", linewidth=1, label="k²/K")
        axis.axhline(1, color="gray", linewidth=1, linestyle=":")
        axis.set(xscale="log", yscale="log", xlabel="k²/K, times fewer products")
        axis.set_title("forward" if name == "forward" else "forward and gradients")
        for ticks, values in ((axis.xaxis, (1, 1.5, 2, 3, 4, 5)), (axis.yaxis, (0.5, 1, 2, 3, 5, 10, 20))):
            ticks.set_ticks(values, labels=map(str, values))
            ticks.set_ticks((), minor=True)
    axes[0].set_ylabel("times faster than stock")
    axes[0].legend()
    figure.savefig(OUT / "speed_up.svg")
    figure.savefig(OUT / "speed_up.png", dpi=120)


def plot_growth(rows):
    """Draws times of the stock and of the tied convolution as one thing grows."""
    names = list(dict.fromkeys(row["grows"] for row in rows))
    figure, axes = plt.subplots(1, len(names), figsize=(16, 3.6), sharey=True, layout="constrained")
    for axis, name in zip(axes, names, strict=True):
        for color, way in enumerate(sorted({row["way"] for row in rows})):
            own = [row for row in rows if row["way"] == way and row["grows"] == name]
            for kind, style in (("stock", ":"), ("tied", "-")):
                times = [row["forward_ms"][kind] for row in own]
                axis.plot([row["value"] for row in own], times, style, color=f"C{color}", label=f"{way}, {kind}")
        axis.set(xscale="log", yscale="log", xlabel=name)
        axis.xaxis.set_ticks([row["value"] for row in own], labels=[str(row["value"]) for row in own])
        axis.xaxis.set_ticks((), minor=True)
    axes[0].set_ylabel("forward, ms")
    axes[-1].legend(fontsize="x-small")
    figure.savefig(OUT / "growth.svg")
    figure.savefig(OUT / "growth.png", dpi=120)


if __name__ == "__main__":
    main()
