"""The chart: one panel per scenario, the figure that its aim is about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from _scenarios import Report

_OURS = "#1b6ca8"
_OTHER = "#b8b8b8"


def draw(reports: Sequence[Report], label: Callable[[str], str], caption: str, target: Path) -> None:
    """Write the chart as PNG.

    Args:
        reports: What was measured.
        label: Gives the name of a contender.
        caption: Machine and versions.
        target: The file.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels = [panel for report in reports for panel in _panels(report)]
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(5.4 * columns, 2.5 * lines + 0.4), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, unit, values, logarithmic) in zip(axes.flat, panels, strict=False):
        names = [label(key) for key in values]
        figures = list(values.values())
        colours = [_OURS if name.startswith("aiochroma") else _OTHER for name in names]
        bars = axis.barh(names, figures, color=colours)
        axis.bar_label(bars, labels=[_short(value) for value in figures], padding=3, fontsize=8)
        if logarithmic:
            axis.set_xscale("log")
        axis.margins(x=0.18)
        axis.invert_yaxis()
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_xlabel(unit, fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.text(0.01, 0.005, caption, fontsize=7, color="#555555")
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(target, dpi=130)
    plt.close(figure)


def _panels(report: Report) -> list[tuple[str, str, dict[str, Any], bool]]:
    def column(name: str) -> dict[str, Any]:
        return {key: row[name] for key, row in report.rows.items() if name in row}

    if report.name == "ingest":
        during = "during an upsert of many records"
        return [
            (f"Recall p99 {during}", "ms, less is better", column("p99_ms"), True),
            (f"Loop stall p99 {during}", "ms, less is better", column("stall_p99_ms"), True),
            ("Upsert of many records", "records/s, more is better", column("rate"), False),
        ]
    if report.name.startswith("outstanding"):
        return [(report.title, "time per request / with 64, less is better", column("ratio"), False)]
    if report.name == "fanout-1":
        return [(f"{report.title}: p50", "ms, less is better", column("p50_ms"), False)]
    return [(report.title, "requests/s, more is better", column("rate"), False)]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
