"""Vega through vl-convert: the JavaScript bundle of the page, and a spec drawn as SVG."""

from __future__ import annotations

import contextlib
import re
from importlib.metadata import version
from typing import Any

from peftlab.atomic import write
from peftlab.cache import cache_folder

Spec = dict[str, Any]

SVG_WIDTH = 560  # pixels of the plot itself, axes apart

_PATH = re.compile(r'(<path(?: [^<>]*)? d=")([^"]*)')
_DECIMALS = re.compile(r"(\.\d)\d+")

SNIPPET = "window.vegaEmbed = vegaEmbed;"  # the name that the bundle gives to the page

CONFIG: Spec = {
    "font": "sans-serif",
    "background": None,
    "view": {"stroke": None},
    "title": {
        "anchor": "start",
        "fontSize": 13,
        "fontWeight": 600,
        "offset": 12,
        "frame": "bounds",
        "limit": SVG_WIDTH,
    },
    "axis": {
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "domainColor": "#888",
        "tickColor": "#888",
        "gridColor": "#888",
        "gridOpacity": 0.2,
        "titlePadding": 8,
    },
    "axisX": {"grid": False, "labelFlush": True, "labelOverlap": "greedy", "labelSeparation": 8},
    "legend": {"labelFontSize": 11, "labelLimit": 150},
    "line": {"strokeJoin": "round", "strokeCap": "round"},
}

ON_WHITE: Spec = {**CONFIG, "background": "white"}


def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that needs no network, about 0.9 MB.

    Building it takes a second, so it is kept in the user's cache, under vl-convert's version.
    """
    import vl_convert

    cached = cache_folder() / f"vega-embed-{version('vl-convert-python')}.js"
    try:
        return cached.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        script: str = vl_convert.javascript_bundle(SNIPPET, vl_version=None)
    # a cache that can't be written costs a second each time, no more
    with contextlib.suppress(OSError):
        write(cached, script)
    return script


def svg(spec: Spec) -> str:
    """The figure as an SVG document on white, with its title; text stays text."""
    import vl_convert

    document: str = vl_convert.vegalite_to_svg(_with_width(spec), config=ON_WHITE)
    # a tenth of a pixel is enough for a path, and halves the bytes of many lines
    return _PATH.sub(lambda path: path[1] + _DECIMALS.sub(r"\1", path[2]), document)


def pdf(spec: Spec) -> bytes:
    """The figure as a PDF of one page, as large as the figure."""
    import vl_convert

    document: bytes = vl_convert.vegalite_to_pdf(_with_width(spec), config=ON_WHITE)
    return document


def _with_width(spec: Spec) -> Spec:
    """The spec with the width of a file; panels have widths of their own."""
    return spec if "facet" in spec else {**spec, "width": SVG_WIDTH}
