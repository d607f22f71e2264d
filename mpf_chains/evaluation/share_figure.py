"""A dot plot of realised against target shares, context by context."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from mpf_chains.errors import InvalidInput, MissingExtra
from mpf_chains.evaluation.figure import COLOURS
from mpf_chains.evaluation.intervals import share_interval
from mpf_chains.evaluation.tasks.shares import counts_of, found_in

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mpf_chains.evaluation.result import Evaluation


def plot_shares(
    *evaluations: Evaluation, attribute: str | None = None, path: str | os.PathLike[str] | None = None
) -> Figure:
    """Draw the share of each class in each context, as realised and as targeted.

    Args:
        *evaluations: At least one, all of the benchmark "targets" and the same attributes and contexts.
        attribute: Of several attributes, which; default all together, a panel for each joint class.
        path: Where to write the figure; the suffix decides the format. Default nowhere.

    Returns:
        The matplotlib figure. A panel for each class (of two classes for the first); contexts by its target.
        Black bars are targets; dots the shares among answers that express a class, with their exact 90 % interval; a
        context without any has no dot.

    Raises:
        MissingExtra: If matplotlib is not installed.
        InvalidInput: If the evaluations are not of one target table, or have no such attribute.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "plots") from error
    if not evaluations or any(each.benchmark["kind"] != "targets" for each in evaluations):
        raise InvalidInput("Shares are plotted of evaluations on target tables.", hint="See `target_prompts`.")
    read = [found_in(each.records) for each in evaluations]
    if attribute is not None:
        read = [(found, table.marginal(attribute)) for found, table in read]
    table = read[0][1]
    if any(set(other.contexts) != set(table.contexts) or other.classes != table.classes for _, other in read):
        raise InvalidInput("The evaluations differ in contexts or classes.", hint="Evaluate on the same targets.")
    table = table.select(sorted(table.contexts, key=lambda context: -table[context][table.classes[0]]))
    shown = table.classes[:1] if len(table.classes) == 2 else table.classes
    rows, systems = len(table), len(evaluations)
    size = (2.0 + 3.0 * len(shown), 1.2 + rows * (0.12 + 0.1 * systems))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    counts = [counts_of(found, table)[0] for found, _ in read]
    for place, (panel, name) in enumerate(zip(panels, shown, strict=True)):
        column = table.classes.index(name)
        panel.plot(table.flat[:, column], range(rows), "|", color="#222222", markersize=9, label="target")
        for number, (each, realised) in enumerate(zip(evaluations, counts, strict=True)):
            offset = 0.6 * ((number + 0.5) / systems - 0.5)
            _dots(panel, realised, column, offset, COLOURS[number % len(COLOURS)], each.label)
        panel.set(xlim=(-0.02, 1.02), ylim=(rows - 0.5, -0.5), xlabel=f"share of {name!r}")
        panel.set_yticks(range(rows), table.contexts if place == 0 else [""] * rows, fontsize=8)
        panel.grid(alpha=0.25)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=2, fontsize=8)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _dots(panel: Any, counts: Any, column: int, offset: float, colour: str, label: str) -> None:
    for row, drawn in enumerate(counts):
        n, successes = int(drawn.sum()), int(drawn[column])
        if n:
            panel.plot(share_interval(successes, n), [row + offset] * 2, color=colour, linewidth=1, alpha=0.6)
    kept = [row for row, drawn in enumerate(counts) if drawn.sum()]
    shares = [counts[row][column] / counts[row].sum() for row in kept]
    panel.plot(shares, [row + offset for row in kept], "o", color=colour, markersize=4, label=label)
