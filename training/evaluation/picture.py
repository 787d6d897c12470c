"""How our pictures look: SVGs for light and dark pages; equal results give equal bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # a second to import, for nothing where no picture is asked for
    from matplotlib.figure import Figure

# Okabe and Ito's, whose differences colour-blind people see, in the shades that stand out from
# white and from black alike; so does the grey. The shapes differ too.
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
SHAPES: Final = ("o", "s", "^", "D")
GREY: Final = "#7f7f7f"
STYLE: Final = {
    "svg.hashsalt": "l2e",  # names of elements, else drawn by chance
    "font.size": 9,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), GREY),
    "axes.edgecolor": GREY,
}


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """Gives an empty figure of this size, inches, in our style whatever the user's own is.

    `to_svg` is to be called inside: what a figure looks like is decided when it is saved.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", STYLE]):
        yield Figure(figsize=(width, height), layout="constrained")


def to_svg(figure: Figure, title: str) -> str:
    """Returns a figure as an SVG with a transparent ground, without the time and the maker."""
    buffer = io.StringIO()
    about = {"Date": None, "Creator": None, "Title": title}
    figure.savefig(buffer, format="svg", transparent=True, metadata=about)
    return buffer.getvalue()
