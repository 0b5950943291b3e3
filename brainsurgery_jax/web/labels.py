"""Labels for screen readers, which may hold the names of tensors: any text at all."""

from __future__ import annotations

from typing import TypeVar

from nicegui.element import Element

Drawn = TypeVar("Drawn", bound=Element)


def name_image(chart: Drawn, label: str) -> Drawn:
    """Give a chart the role of an image, and a label."""
    chart.props["role"] = "img"
    chart.props["aria-label"] = label
    return chart
