"""A line for a terminal and a page for a browser say what the explanation says."""

import html
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.explainer import Explanation
from models.rationale import Span, WordScores
from models.views import to_page, to_terminal

TEXT = "A great story,\nbut boring & <b>slow</b>."
EXPLANATION = Explanation(
    text=TEXT,
    label="POS",
    score=0.8125,
    scores={"NEG": 0.1875, "POS": 0.8125},
    target="POS",
    word_scores=WordScores.none(TEXT),
    rationale=(
        Span(2, 7, "great", 3.0, "supports", "high"),
        Span(8, 13, "story", 0.5, "supports", "low"),
        Span(19, 25, "boring", -2.0, "opposes", "high"),
        Span(31, 35, "slow", -0.5, "opposes", "low"),
    ),
    windows=1,
)


class Body(HTMLParser):
    """Collects the text of the first paragraph and the classes of its marks."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.paragraphs = 0
        self.inside = False
        self.text = ""
        self.marks = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "p":
            self.paragraphs += 1
            self.inside = self.paragraphs == 1
        elif tag == "mark" and self.inside:
            self.marks.append(dict(attrs)["class"])

    def handle_endtag(self, tag):
        if tag == "p":
            self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.text += data


def test_a_plain_terminal_marks_spans_with_signs():
    assert to_terminal(EXPLANATION, colour=False) == (
        "POS 0.812\nA [+great] [+story],\nbut [-boring] & <b>[-slow]</b>."
    )


def test_the_other_label_is_named():
    other = replace(EXPLANATION, target="NEG", rationale=())
    assert to_terminal(other, colour=False) == f"POS 0.812 (words for NEG)\n{TEXT}"


def test_colours_tell_effect_and_strength_apart_and_hide_nothing():
    shown = to_terminal(EXPLANATION, colour=True)
    codes = re.findall(r"\x1b\[([\d;]+)m([^\x1b]*)\x1b\[0m", shown)
    assert [word for _, word in codes] == ["great", "story", "boring", "slow"]
    assert len({code for code, _ in codes}) == 4
    assert re.sub(r"\x1b\[[\d;]+m", "", shown) == f"POS 0.812\n{TEXT}"


@pytest.mark.parametrize("colour", [True, False])
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=3, max_size=30))
def test_a_text_cannot_command_the_terminal(colour, text):
    """Nothing of the text's own control characters arrives; each is one picture, in and out."""
    span = Span(1, 2, text[1:2], 1.0, "supports", "high")
    shown = to_terminal(replace(EXPLANATION, text=text, rationale=(span,)), colour=colour)
    body = shown.partition("\n")[2]
    body = re.sub(r"\x1b\[(?:1;97;44|0)m", "", body) if colour else body[:1] + body[3:4] + body[5:]
    assert len(body) == len(text)
    for character, original in zip(body, text, strict=True):
        control = original not in "\n\t" and (original < " " or "\x7f" <= original <= "\x9f")
        assert (character != original) == control
        assert character in "\n\t" or not (character < " " or "\x7f" <= character <= "\x9f")


def test_escape_sequences_of_a_text_are_shown_as_pictures():
    plain = replace(EXPLANATION, text="a\x1b[2Jb\x00\x9b1m\x7f", rationale=())
    assert to_terminal(plain, colour=True).endswith("a␛[2Jb␀�1m␡")


def test_a_page_holds_the_text_and_its_marks():
    page = to_page(EXPLANATION)
    body = Body(page)
    assert body.text == TEXT
    assert body.marks == [
        "supports high",
        "supports low",
        "opposes high",
        "opposes low",
    ]
    assert "POS <small>0.812</small>" in page
    assert "<b>" not in page
    assert "supports POS" in page
    assert "://" not in page  # no outside resource


def test_a_page_has_a_rule_for_every_class_that_it_uses():
    page = to_page(EXPLANATION)
    style = page.partition("<style>")[2].partition("</style>")[0]
    for classes in ("supports", "supports.high", "opposes", "opposes.high"):
        assert f"mark.{classes} {{" in style


def test_labels_are_escaped():
    page = to_page(replace(EXPLANATION, label="<script>", target="{a&b}", rationale=()))
    assert "<script>" not in page
    assert page.count(html.escape("<script>")) == 2
    assert "opposes {a&amp;b}" in page


@given(st.text(st.characters(exclude_characters="\r\x00", exclude_categories=["Cs"])))
def test_any_text_is_on_the_page_as_it_is(text):
    assert Body(to_page(replace(EXPLANATION, text=text, rationale=()))).text == text


def test_braces_are_not_a_template():
    text = "{title} {0} %s {{body}}"
    assert Body(to_page(replace(EXPLANATION, text=text, rationale=()))).text == text


def test_of_a_real_explanation(tiny_explainer):
    [found] = tiny_explainer.explain(["A great story, but boring."])
    assert to_terminal(found, colour=False) == "POS 0.622\nA [+great] story, but [-boring]."
    assert Body(to_page(found)).text == found.text
