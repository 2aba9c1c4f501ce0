"""Prints the tables of the page about speed from what `run.py` measured: `python tests/benchmarks/markdown.py`."""

import json
from pathlib import Path

RESULTS = Path(__file__).parent.parent.parent / "out" / "bench" / "bench.json"
WAYS = {"jax": "JAX", "tensorflow jit": "TensorFlow, jit", "tensorflow": "TensorFlow", "torch": "torch"}


def main():
    """Prints all tables that have rows, each below the name of its section."""
    results = json.loads(RESULTS.read_text())
    print(results["machine"])
    for section in ("convolutions", "strides"):
        for threads in (1, 2):
            rows = [row for row in results[section] if row["threads"] == threads]
            show(f"{section}, {threads} threads", pivot(rows, ("case", "k²/K"), case_and_saving, way, both))
    show("dimensions", pivot(results["dimensions"], ("case", "k²/K"), case_and_saving, way, both))
    show("special", pivot(with_taps(results["special"]), ("case",), case, way, both))
    show("torch.compile", pivot(results["torch.compile"], ("case", "k²/K"), case_and_saving, lambda row: "torch.compile", both))
    for threads in (1, 2):
        rows = [row for row in results["training"] if row["threads"] == threads and row["name"] != "stock"]
        show(
            f"training, {threads} threads",
            pivot(rows, ("network", "kernels"), network, way, lambda row: two_decimals(row["time"]["median"])),
        )
    show("compile", pivot(results["compile"], ("", "step"), backend_and_step, lambda row: row["name"], seconds))
    show("eager", pivot(eager(results["eager"]), ("", "layers"), what_and_name, way, lambda row: two_decimals(row["relative"])))
    show(
        "projection",
        pivot(results["projection"], ("kernel",), lambda row: (row["kernel"],), way, lambda row: one_decimal(row["copies"])),
    )
    memory = results["memory stock"] + results["memory tied"]
    show("memory, MB", pivot(memory, ("network",), name, way, lambda row: f"{row['megabytes']:.0f}"))
    for what in ("training", "inference"):
        rows = [row for row in results["equivariant"] if row["what"] == what]
        times = [row for row in rows if "ms" in row]
        show(f"equivariant {what}", pivot(times, ("case",), case, lambda row: row["name"], relative_time))
        memory = [row for row in rows if "megabytes" in row]
        show(
            f"equivariant {what}, MB",
            pivot(memory, ("case",), case, lambda row: row["name"], lambda row: f"{row['megabytes']:.0f}"),
        )


def show(title, lines):
    """Prints a table below its title, unless it is empty."""
    if len(lines) > 2:
        print(f"\n{title}\n", *lines, sep="\n")


def pivot(rows, heads, labels, column, cell):
    """Returns the lines of a table with a line for each combination of `labels(row)`, and a column for each `column(row)`."""
    cells = {(labels(row), column(row)): cell(row) for row in rows}
    columns = list(dict.fromkeys(place for _, place in cells))
    lines = [line((*heads, *columns)), f"|{'---|' * (len(heads) + len(columns))}"]
    for label in dict.fromkeys(label for label, _ in cells):
        lines.append(line((*label, *(cells.get((label, place), "") for place in columns))))
    return lines


def line(entries):
    """Returns a line of a table."""
    return f"| {' | '.join(map(str, entries))} |"


def one_decimal(number):
    """Returns a number with one decimal below ten, and none above."""
    return f"{number:.1f}" if number < 9.95 else f"{number:.0f}"


def two_decimals(number):
    """Returns a number with two decimals."""
    return f"{number:.2f}"


def case(row):
    """Returns the configuration of a row."""
    return (row["case"],)


def case_and_saving(row):
    """Returns the configuration of a row, and how many times fewer products it takes."""
    return row["case"], f"{row['saving']:.1f}"


def network(row):
    """Returns the kernels of a network, and how they are tied."""
    return row["network"].replace("question 5x5", "5x5 of nine"), row["name"]


def name(row):
    """Returns the name of a network."""
    return (row["name"],)


def backend_and_step(row):
    """Returns the way of running, and whether gradients are computed."""
    return WAYS[row["way"]], row["what"]


def what_and_name(row):
    """Returns what is timed, and with which layers."""
    return row["what"], row["name"]


def way(row):
    """Returns the way of running, as the page names it."""
    return WAYS[row["way"]]


def both(row):
    """Returns how many times faster the tied convolution is, forward / forward and gradients."""
    return " / ".join(one_decimal(row[what]["median"]) for what in ("forward", "training") if what in row)


def with_taps(rows):
    """Yields the rows of huge kernels, and for each depthwise layer a row for group sums and one for taps."""
    for row in rows:
        named = {**row, "case": f"{row['kind']}, {row['case']}"}
        yield named
        if "forward_taps" in row:
            yield {
                **named,
                "case": f"{named['case']}, by taps",
                "forward": row["forward_taps"],
                "training": row["training_taps"],
            }


def seconds(row):
    """Returns the seconds of the first step less the second, and those of the second in parentheses."""
    return f"{row['seconds']:.1f} ({row['step_seconds']:.1f})"


def eager(rows):
    """Returns a row for each time relative to a stock layer."""
    return [
        {"way": row["way"], "what": row["what"], "name": name, "relative": relative}
        for row in rows
        for name, relative in row["relative"].items()
        if name != "stock"
    ]


def relative_time(row):
    """Returns the time relative to e2cnn, and that of e2cnn in milliseconds."""
    return f"{row['ms']:.1f} ms" if row["name"] == "e2cnn" else two_decimals(1 / row["ratio"]["median"])


if __name__ == "__main__":
    main()
