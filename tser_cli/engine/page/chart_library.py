"""The chart library that a report page carries: Vega, Vega-Lite and Vega-Embed.

It comes out of the package vl-convert-python, which the makers of Vega's Python side maintain, and
which bundles it without a network.
"""

from __future__ import annotations

from functools import cache

NOTICE = (
    "Vega, Vega-Lite and Vega-Embed: copyright 2013-2025 University of Washington Interactive Data "
    "Lab and contributors, BSD 3-Clause"
)


@cache
def library() -> str:
    """Return a script that defines `vegaEmbed` and nothing else that others can see."""
    import vl_convert

    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    # what a browser's parser would do anyway, before it compares the script with its hash
    bundle = bundle.replace("\r\n", "\n").replace("\r", "\n")
    return f"/*! {NOTICE} */\n(() => {{\n{bundle}\n}})();\n"
