"""Charts of audits as inline SVG: elements without script, coloured by the page's own variables."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple

__all__ = ["Point", "columns", "proportion"]

WIDTH: Final = 640
HEIGHT: Final = 132
LEFT, RIGHT, TOP, BOTTOM = 48, 8, 12, 24
WIDEST: Final = 24.0
"""A column is no broader, however few there are."""
LEAST: Final = 1.5


class Point(NamedTuple):
    """One run: when, how many findings, and whether it was complete."""

    at: datetime
    value: int
    complete: bool


def proportion(value: int, largest: int) -> ET.Element:
    """A bar as long as its share of the largest."""
    svg = ET.Element("svg", {"class": "bar", "role": "img", "aria-label": f"{value:,}"})
    share = 100 * value / max(largest, 1)
    ET.SubElement(svg, "rect", {"class": "track", "width": "100%", "height": "100%", "rx": "4"})
    ET.SubElement(svg, "rect", {"class": "series", "width": f"{max(share, 0.5):.2f}%", "height": "100%", "rx": "4"})
    return svg


def columns(points: Sequence[Point], label: str) -> ET.Element:
    """A column for each run, in the order of time; a run that was not complete is a cross at the base."""
    svg = ET.Element("svg", {"class": "chart", "viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img", "aria-label": label})
    top = _round_up(max((point.value for point in points), default=0))
    base, height = HEIGHT - BOTTOM, HEIGHT - BOTTOM - TOP
    for value in sorted({0, top // 2 if top > 1 else 0, top}):
        y = base - height * value / top
        line = {"x1": f"{LEFT}", "x2": f"{WIDTH - RIGHT}", "y1": f"{y:.1f}", "y2": f"{y:.1f}"}
        ET.SubElement(svg, "line", line | {"class": "axis" if value == 0 else "grid"})
        _text(svg, LEFT - 6, y + 3.5, f"{value:,}", anchor="end")
    step = (WIDTH - LEFT - RIGHT) / max(len(points), 1)
    width = min(WIDEST, step - 2)
    for number, point in enumerate(points):
        middle = LEFT + step * (number + 0.5)
        mark = ET.SubElement(svg, "g")
        ET.SubElement(mark, "title").text = _told(point)
        if point.value:
            bar = max(height * point.value / top, LEAST)
            ET.SubElement(mark, "path", {"class": "series", "d": _column(middle - width / 2, base, width, bar)})
        if not point.complete:
            _text(mark, middle, base - 4, "✗", anchor="middle", kind="cross")
    ends = dict.fromkeys([0, len(points) - 1]) if points else {}
    for place, number in enumerate(ends):
        x, anchor = (LEFT, "start") if place == 0 else (WIDTH - RIGHT, "end")
        _text(svg, x, HEIGHT - 6, f"{points[number].at:%Y-%m-%d %H:%M}", anchor=anchor)
    return svg


def _told(point: Point) -> str:
    state = "" if point.complete else ", not complete"
    return f"{point.at:%Y-%m-%d %H:%M} UTC: {point.value:,} orphan rows{state}"


def _column(left: float, base: float, width: float, height: float) -> str:
    """Rounded where the value is, square at the base."""
    radius = min(4.0, width / 2, height)
    return (
        f"M{left:.1f},{base:.1f} v{-(height - radius):.1f} q0,{-radius:.1f} {radius:.1f},{-radius:.1f}"
        f" h{width - 2 * radius:.1f} q{radius:.1f},0 {radius:.1f},{radius:.1f} v{height - radius:.1f} z"
    )


def _text(parent: ET.Element, x: float, y: float, text: str, *, anchor: str, kind: str = "tick") -> None:
    made = ET.SubElement(parent, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "class": kind})
    made.text = text


def _round_up(value: int) -> int:
    """The next of 1, 2, 4, 5, 10, 20, …: a scale that divides well."""
    if value <= 1:
        return 1
    unit = int(10 ** math.floor(math.log10(value)))
    return unit * next(step for step in (1, 2, 4, 5, 10) if step * unit >= value)
