"""Explanations for people: a line for a terminal, a page for a browser."""

from __future__ import annotations

import html

from models.explainer import Explanation
from models.rationale import Span, to_html

_COLOURS = {  # ANSI: blue supports, orange opposes; bold is high
    ("supports", "high"): "1;97;44",
    ("supports", "low"): "34",
    ("opposes", "high"): "1;30;43",
    ("opposes", "low"): "33",
}
_MARKS = {"supports": "+", "opposes": "-"}
# A terminal obeys control characters; only line ends and tabs may pass, others are pictured.
_PICTURES = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"},
    **dict.fromkeys(range(0x7F, 0xA0), 0xFFFD),
    0x7F: 0x2421,
}

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 1.1rem/1.9 system-ui, sans-serif; max-width: 44rem; margin: 3rem auto }}
body {{ padding: 0 1rem }}
p {{ white-space: pre-wrap; overflow-wrap: anywhere }}
mark {{ border-radius: .2em; padding: .1em .15em }}
mark.supports {{ background: #c9defa }} mark.supports.high {{ background: #7fb2f2 }}
mark.opposes {{ background: #fbe0c3 }} mark.opposes.high {{ background: #f3a95c }}
</style></head><body><h1>{label} <small>{score}</small></h1>
<p>{body}</p>
<p><small><mark class="supports high">supports {target}</mark>
<mark class="opposes high">opposes {target}</mark></small></p></body></html>
"""


def one_line(text: str) -> str:
    """Escapes in JSON on one line what some readers take for the end of a line."""
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\x85", "\\u0085")


def to_terminal(explanation: Explanation, *, colour: bool) -> str:
    """Returns the label, and the text with the rationale's spans marked.

    Args:
        explanation: to show.
        colour: True marks with ANSI colours, False with `[+…]` and `[-…]`.

    Returns:
        Lines without a final line feed; control characters of the text are pictured.
    """
    head = f"{explanation.label} {explanation.score:.3f}"
    if explanation.target != explanation.label:
        head += f" (words for {explanation.target})"
    pieces, last = [], 0
    for span in explanation.rationale:
        pieces += [explanation.text[last : span.start].translate(_PICTURES), _mark(span, colour)]
        last = span.end
    return f"{head}\n{''.join(pieces)}{explanation.text[last:].translate(_PICTURES)}"


def to_page(explanation: Explanation) -> str:
    """Returns a whole HTML page; everything from the text and the labels is escaped."""
    return _PAGE.format(
        title=html.escape(explanation.label),
        label=html.escape(explanation.label),
        score=f"{explanation.score:.3f}",
        target=html.escape(explanation.target),
        body=to_html(explanation.text, explanation.rationale),
    )


def _mark(span: Span, colour: bool) -> str:
    text = span.text.translate(_PICTURES)
    if not colour:
        return f"[{_MARKS.get(span.effect, '')}{text}]"
    code = _COLOURS.get((span.effect, span.strength), "0")
    return f"\x1b[{code}m{text}\x1b[0m"
