"""Labels of charts for screen readers, which may hold the names of tensors: any text at all."""

from __future__ import annotations

from nicegui import ui


def name_image(chart: ui.echart, label: str) -> ui.echart:
    """Give a chart the role of an image, and a label. ECharts writes one of its own over it, if it is not told too."""
    chart.options["aria"] = {"enabled": True, "label": {"description": label}}
    chart.props["role"] = "img"
    chart.props["aria-label"] = label
    return chart
