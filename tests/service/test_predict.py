"""POST /predict: exact offsets on every kind of text, and the options."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import render
from service.schemas import Prediction

HARD_TEXTS = {
    "plain": "A great story, but boring.",
    "emoji": "👩‍👩‍👧 great 😀😀 but boring 🇩🇪!",
    "combining": "Cafe\u0301 was great, nai\u0308ve and boring \u0301",
    "nul": "great\x00boring \x00",
    "controls": "great\r\n\tboring\u2028wonderful\u200b",
    "right to left": "great \u202eboring שלום عالم",
    "unspaced": "great 映画は素晴らしい boring",
    "markup": "<b>great</b> &amp; <script>boring</script>",
    "one mark": "\u0301",
    "no numbers": "great NaN Infinity -Infinity",
    "long word": "a" * 100_000,
    "long text": "A great story, but boring. " * 100,
}


def ask(client, **body):
    response = client.post("/predict", json=body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    Prediction.model_validate(answer, strict=True)
    assert set(answer) <= set(Prediction.model_fields)
    return answer


def test_answer_has_the_agreed_shape(client):
    answer = ask(client, text="A great story, but boring.")
    assert list(answer) == [
        *("label", "score", "scores", "rationale", "target", "windows", "model", "offset_unit")
    ]
    assert answer["label"] == answer["target"] == "POS"
    assert answer["score"] == answer["scores"]["POS"]
    assert sum(answer["scores"].values()) == pytest.approx(1)
    fields = ("start", "end", "text", "weight", "effect", "strength")
    assert [tuple(span) for span in answer["rationale"]] == [fields, fields]
    assert [tuple(span.values()) for span in answer["rationale"]] == [
        (2, 7, "great", 3.0, "supports", "high"),
        (19, 25, "boring", -2.0, "opposes", "high"),
    ]
    assert answer["offset_unit"] == "codepoint"
    assert answer["model"]["name"] == "tiny"
    assert len(answer["model"]["digest"]) == 64


@pytest.mark.parametrize("text", HARD_TEXTS.values(), ids=HARD_TEXTS)
def test_offsets_slice_the_text_exactly(client, text):
    answer = ask(client, text=text, words=True, html=True)
    for span in answer["rationale"] + answer["words"]:
        assert text[span["start"] : span["end"]] == span["text"]
    covered = "".join(span["text"] for span in answer["words"])
    assert covered == "".join("".join(text.split()).split())
    if "great" in text and "boring" in text and "long" not in text:
        assert {"great", "boring"} <= {span["text"] for span in answer["words"]}


def test_word_of_a_megabyte_is_answered(client):
    text = "great " + "x" * 999_000 + "😀 boring"
    answer = ask(client, text=text)
    assert [span["text"] for span in answer["rationale"]] == ["great", "boring"]
    assert answer["rationale"][1]["end"] == len(text)


def test_long_document_says_how_many_windows(client):
    assert ask(client, text="great story. " * 60)["windows"] > 1


def test_other_label_turns_the_weights(client):
    answer = ask(client, text="A great story, but boring.", target="NEG")
    assert (answer["label"], answer["target"]) == ("POS", "NEG")
    assert [span["effect"] for span in answer["rationale"]] == ["opposes", "supports"]


def test_null_target_is_the_predicted_label(client):
    assert ask(client, text="great", target=None)["target"] == "POS"


def test_label_only(client):
    answer = ask(client, text="A great story.", explain=False)
    assert answer["label"] == "POS"
    assert answer["rationale"] == []


def test_label_only_keeps_the_target(client):
    answer = ask(client, text="A great story.", explain=False, target="NEG")
    assert (answer["label"], answer["target"]) == ("POS", "NEG")


def test_verify_says_what_masking_does(client):
    verified = ask(client, text="A great story.", verify=True)["verify"]
    assert set(verified) == {"comprehensiveness", "sufficiency", "log_odds_drop"}
    assert verified["log_odds_drop"] == pytest.approx(3.0)


def test_html_is_escaped_and_marked(client):
    html = ask(client, text="<b>great</b>", html=True)["html"]
    assert html.startswith('&lt;b&gt;<mark class="supports high"')
    assert html.endswith("great</mark>&lt;/b&gt;")


def test_max_words_limits_the_rationale(client):
    answer = ask(client, text="great wonderful boring", max_words=1)
    assert [span["text"] for span in answer["rationale"]] == ["great"]


def test_same_text_same_answer_alone_and_in_a_batch(client):
    texts = [text for text in HARD_TEXTS.values() if len(text) < 10_000]
    alone = [ask(client, text=text) for text in texts]
    for order in (1, -1):
        items = [{"text": text} for text in texts[::order]]
        results = client.post("/predict/batch", json={"items": items}).json()["results"]
        assert [result["result"] for result in results] == alone[::order]


text = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(text, inner, max_size=5),
)


@given(json_values)
def test_json_and_back(value):
    found = render.to_json(value)
    assert json.loads(found) == value
    assert b"\n" not in found


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_json_does_not_have_is_refused(number):
    with pytest.raises(ValueError, match="JSON compliant"):
        render.to_json({"words": ["great", {"weight": number}]})
