"""Charts as inline SVG that fits any width: texts keep their size, because positions across are percentages.

Curves lie in an inner drawing that is stretched (its strokes are not). Colours and fonts come from the page's styles;
dashes and shapes tell the series apart where colours do not.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from functools import singledispatch

from mpf_chains.reporting.content import Bar, Chart, Curve, Rows, Steps
from mpf_chains.reporting.text import fixed, plain, shortened

LEFT, WIDTH = 2.0, 96.0  # of the drawing, in percent
HEIGHT = 190.0  # of curves, in pixels
ROW = 40.0  # of one value, in pixels


def chart_svg(chart: Chart, name: str) -> str:
    """Draw a chart.

    Args:
        chart: What to draw.
        name: Id of the drawing, unique in its page; of ASCII letters and digits.

    Returns:
        An <svg> element with a title and a description.
    """
    height, body = _drawn(chart)
    title, description = _escaped(chart.title), _escaped(chart.description)
    return (
        f'<svg role="img" aria-labelledby="{name}t {name}d" width="100%" height="{_px(height)}">'
        f'<title id="{name}t">{title}</title><desc id="{name}d">{description}</desc>{body}</svg>'
    )


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two ends, at most so many, in steps of 1, 2 or 5 times a power of ten.

    Examples:
        >>> nice_ticks(0, 1), nice_ticks(0.11, 0.19)
        ([0.0, 0.5, 1.0], [0.12, 0.14, 0.16, 0.18])
    """
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low]
    power = 10.0 ** math.floor(math.log10(span))
    for step in (power * factor for factor in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            return [round(i * step, 12) for i in range(first, last + 1)]
    return [low, high]


@singledispatch
def _drawn(chart: Chart) -> tuple[float, str]:
    raise TypeError(type(chart).__name__)


@_drawn.register
def _steps(chart: Steps) -> tuple[float, str]:
    top, bottom = 16.0, 16.0 + HEIGHT
    parts = []
    for level in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = bottom - level * HEIGHT
        parts.append(f'<line class="grid" x1="{LEFT}%" x2="{LEFT + WIDTH}%" y1="{_px(y)}" y2="{_px(y)}"/>')
        if level in (0.5, 1.0):
            parts.append(_text(LEFT, y - 4, f"{level:.0%}".replace("%", " %"), "start"))
    parts.append(_axis(chart.low, chart.high, bottom, chart.x_label))
    paths = [f'<path class="line {line.role}" d="{_staircase(line.values, chart)}"/>' for line in chart.lines]
    parts.append(_stretched("".join(paths), top))
    for line in chart.lines:
        if line.values:
            x = _across(math.fsum(line.values) / len(line.values), chart.low, chart.high)
            parts.append(_mark(line.role, x, bottom))
    return bottom + 44, "".join(parts)


@_drawn.register
def _rows(chart: Rows) -> tuple[float, str]:
    bottom = ROW * len(chart.rows) + 6
    parts = []
    for i, row in enumerate(chart.rows):
        parts.append(_row(row, i * ROW, chart))
    parts.append(_axis(chart.low, chart.high, bottom, ""))
    return bottom + 24, "".join(parts)


@_drawn.register
def _curve(chart: Curve) -> tuple[float, str]:
    top, bottom = 34.0, 34.0 + HEIGHT
    xs, ys = ([point[i] for point in (*chart.points, chart.chosen)] for i in (0, 1))
    (left, right), (low, high) = _padded(xs), _padded(ys)
    parts = [_text(LEFT, 12, f"↑ {chart.y_label}", "start")]
    for tick in nice_ticks(low, high, 4):
        y = bottom - (tick - low) / (high - low) * HEIGHT
        parts.append(f'<line class="grid" x1="{LEFT}%" x2="{LEFT + WIDTH}%" y1="{_px(y)}" y2="{_px(y)}"/>')
        parts.append(_text(LEFT, y - 4, _tick(tick), "start"))
    parts.append(_axis(left, right, bottom, chart.x_label))

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return (point[0] - left) / (right - left), 1 - (point[1] - low) / (high - low)

    places = [place(point) for point in chart.points]
    path = "M" + "L".join(f"{1000 * x:.1f} {1000 * y:.1f}" for x, y in places)
    parts.append(_stretched(f'<path class="line plain" d="{path}"/>', top))
    for x, y in places:
        parts.append(f'<circle class="dot plain" r="2.5" cx="{LEFT + WIDTH * x:.2f}%" cy="{_px(top + HEIGHT * y)}"/>')
    x, y = place(chart.chosen)
    parts.append(f'<circle class="dot after" r="6" cx="{LEFT + WIDTH * x:.2f}%" cy="{_px(top + HEIGHT * y)}"/>')
    return bottom + 44, "".join(parts)


def _row(row: Bar, top: float, chart: Rows) -> str:
    """Label and value on one line, the mark below it: no gutter is needed, however narrow the page."""
    middle = top + 27
    x = _across(row.value, chart.low, chart.high)
    value, has_interval = fixed(row.value), row.low is not None and row.high is not None
    interval = (
        f'<tspan class="range"> [{fixed(row.low or 0.0)}, {fixed(row.high or 0.0)}]</tspan>' if has_interval else ""
    )
    parts = [
        _text(LEFT, top + 15, shortened(row.label, 24), "start", "label"),
        f'<text class="value" x="{LEFT + WIDTH}%" y="{_px(top + 15)}" text-anchor="end">{value}{interval}</text>',
        f'<line class="grid" x1="{LEFT}%" x2="{LEFT + WIDTH}%" y1="{_px(middle)}" y2="{_px(middle)}"/>',
    ]
    if chart.floor is not None:
        ends = sorted(_across(end, chart.low, chart.high) for end in chart.floor[:2])
        size = f'x="{ends[0]:.2f}%" width="{ends[1] - ends[0]:.2f}%" y="{_px(middle - 7)}" height="14"'
        mean = _across(chart.floor[2], chart.low, chart.high)
        parts.append(f'<rect class="floor" {size}/>{_upright(mean, middle - 7, middle + 7, "floor-mean")}')
    if chart.ideal is not None:
        parts.append(_upright(_across(chart.ideal, chart.low, chart.high), middle - 8, middle + 8, "ideal"))
    if chart.bars:
        start, end = sorted((_across(0.0, chart.low, chart.high), x))
        size = f'x="{start:.2f}%" width="{end - start:.2f}%" y="{_px(middle - 5)}" height="10"'
        parts.append(f'<rect class="bar {row.role}" {size}/>')
    if row.low is not None and row.high is not None:
        ends = [_across(end, chart.low, chart.high) for end in (row.low, row.high)]
        at = f'y1="{_px(middle)}" y2="{_px(middle)}"'
        kind = "whisker" if chart.bars else f"whisker {row.role}"
        parts.append(f'<line class="{kind}" x1="{ends[0]:.2f}%" x2="{ends[1]:.2f}%" {at}/>')
        parts += [_upright(end, middle - 4, middle + 4, kind) for end in ends]
    if not chart.bars:
        parts.append(f'<circle class="dot {row.role}" r="5" cx="{x:.2f}%" cy="{_px(middle)}"/>')
    return "".join(parts)


def _axis(low: float, high: float, y: float, label: str) -> str:
    parts = [f'<line class="axis" x1="{LEFT}%" x2="{LEFT + WIDTH}%" y1="{_px(y)}" y2="{_px(y)}"/>']
    for tick in nice_ticks(low, high):
        x = _across(tick, low, high)
        anchor = "start" if x < 8 else "end" if x > 92 else "middle"
        parts.append(_upright(x, y, y + 4, "axis") + _text(x, y + 17, _tick(tick), anchor))
    if label:
        parts.append(_text(LEFT + WIDTH, y + 35, f"{shortened(label, 40)} →", "end"))
    return "".join(parts)


def _staircase(values: Sequence[float], chart: Steps) -> str:
    """The empirical distribution function over [0, 1000]²: right along each step, then up."""
    path, count = ["M0 1000"], len(values)
    ordered = sorted(values)
    for i, value in enumerate(ordered):
        if i + 1 == count or ordered[i + 1] != value:
            x = 1000 * (_clamped(value, chart.low, chart.high) - chart.low) / (chart.high - chart.low)
            path.append(f"H{x:.1f}V{1000 * (1 - (i + 1) / count):.1f}")
    return "".join([*path, "H1000"])


def _stretched(body: str, top: float) -> str:
    place = f'x="{LEFT}%" width="{WIDTH}%" y="{_px(top)}" height="{_px(HEIGHT)}"'
    return f'<svg {place} viewBox="0 0 1000 1000" preserveAspectRatio="none" class="inner">{body}</svg>'


def _mark(role: str, x: float, bottom: float) -> str:
    return _upright(x, bottom - 14, bottom, f"mean {role}")


def _upright(x: float, top: float, bottom: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x:.2f}%" x2="{x:.2f}%" y1="{_px(top)}" y2="{_px(bottom)}"/>'


def _text(x: float, y: float, words: str, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.2f}%" y="{_px(y)}" text-anchor="{anchor}">{_escaped(words)}</text>'


def _across(value: float, low: float, high: float) -> float:
    """Percent of the drawing's width at which a value lies; what is outside lies at the edge."""
    return LEFT + WIDTH * (_clamped(value, low, high) - low) / (high - low)


def _clamped(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _tick(value: float) -> str:
    return f"{value:.6g}"


def _px(value: float) -> str:
    return f"{value:g}"


def _escaped(words: str) -> str:
    return html.escape(plain(words))
