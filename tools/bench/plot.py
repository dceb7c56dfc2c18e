"""The ratios of a `bench --peers` report as dots: a panel a batch size, a line a model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from recreplay.runtime.errors import RecReplayError

FORMATS = (".svg", ".png")
_OURS = "ours"
# Okabe and Ito's colours, which stay apart for every kind of colour vision, and a shape each.
_LOOKS = (
    ("#000000", "o"),
    ("#e69f00", "s"),
    ("#56b4e9", "D"),
    ("#009e73", "^"),
    ("#0072b2", "v"),
    ("#d55e00", "P"),
    ("#cc79a7", "X"),
    ("#7f7f7f", "<"),
    ("#b8860b", ">"),
    ("#5d3a9b", "h"),
)


def check_plot(path: Path) -> None:
    """Raise where no such picture can be drawn."""
    if path.suffix not in FORMATS:
        raise RecReplayError(f"--plot {path}: expected a file ending in {' or '.join(FORMATS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise RecReplayError("--plot needs matplotlib: pip install 'recreplay[plot]'")


def draw(report: dict[str, Any], path: Path) -> None:
    """Write the picture: how many times longer than ours each contender takes, logarithmic.

    A dot is the ratio of medians, its line the middle half of the rounds' ratios; the bar is how
    much of our time the floor is.
    """
    check_plot(path)
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "recreplay"  # one report, one file
    from matplotlib import pyplot
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    results = report["results"]
    sizes = sorted({b["batch"] for r in results for b in r["batches"]})
    names = [p["name"] for p in report["peers"] if p["name"] != _OURS and p["absent"] is None]
    looks = {name: _LOOKS[i % len(_LOOKS)] for i, name in enumerate(names)}
    figure, axes = pyplot.subplots(
        1,
        len(sizes),
        sharey=True,
        squeeze=False,
        figsize=(3.0 + 3.4 * len(sizes), 1.9 + 0.42 * len(results)),
        layout="constrained",
    )
    places = {result["name"]: -i for i, result in enumerate(results)}
    for axis, size in zip(axes[0], sizes, strict=True):
        for result in results:
            for batch in result["batches"]:
                if batch["batch"] == size:
                    _line(axis, batch, places[result["name"]], looks)
        axis.axvline(1, color="black", linewidth=1)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(axis="x", which="major", color="#dddddd", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.set_title(f"batch {size}", fontsize=10)
        axis.margins(y=0.6 / max(len(results), 2))
    axes[0][0].set_yticks([*places.values()], [*places])
    figure.supxlabel("time of a request over ours (1× = ours; right of it, ours is faster)")
    handles, labels = [], []
    for name in names:
        colour, marker = looks[name]
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle="none"))
        labels.append(name)
    handles.append(Line2D([], [], color="#bbbbbb", linewidth=6))
    labels.append("from floor to ours")
    figure.legend(handles, labels, loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=144, metadata={"Date": None} if path.suffix == ".svg" else {})
    pyplot.close(figure)


def _line(axis: Any, batch: dict[str, Any], y: float, looks: dict[str, tuple[str, str]]) -> None:
    """One model at one batch size; contenders a little apart, so that spreads stay visible."""
    axis.plot(
        [1 / batch["floor"]["ours_to_floor"], 1],
        [y, y],
        color="#cccccc",
        linewidth=6,
        solid_capstyle="butt",
    )
    shown = [c for c in batch["contenders"] if c["name"] in looks]
    for i, contender in enumerate(shown):
        colour, marker = looks[contender["name"]]
        over = contender["to_ours"]
        at = y + 0.5 * (0.5 - (i + 0.5) / len(shown))
        axis.plot([over["p25"], over["p75"]], [at, at], color=colour, linewidth=1.4, alpha=0.8)
        axis.plot([over["ratio"]], [at], color=colour, marker=marker, markersize=5)
