"""POST /predict/batch: every item has its own fate."""

import json

from service.schemas import BatchResponse


def ask(client, items, **options):
    body = json.dumps({"items": items, **options})
    headers = {"content-type": "application/json"}
    response = client.post("/predict/batch", content=body, headers=headers)
    assert response.status_code == 200, response.text
    BatchResponse.model_validate(response.json(), strict=True)
    return response.json()


def test_good_and_bad_items_side_by_side(client):
    items = [
        {"id": "a", "text": "A great story."},
        {"id": "b", "text": "   "},
        {"text": "A boring story.", "target": "NEG"},
        {"id": "d", "text": "fine", "target": "SOSO"},
        {"id": "e", "text": 5},
        {"id": "f"},
        {"id": "g", "text": "good", "colour": "blue"},
        {"id": 8, "text": "good"},
        "good",
        None,
        {"id": "k", "text": "lone \ud800"},
        {"id": "l", "text": "wonderful"},
    ]
    answer = ask(client, items)
    results = answer["results"]
    assert [result["index"] for result in results] == list(range(len(items)))
    assert [result["index"] for result in results if result["status"] == "ok"] == [0, 2, 11]
    assert answer["summary"] == {"ok": 3, "failed": 9}
    assert [result.get("id") for result in results] == [
        *("a", "b", None, "d", "e", "f", "g", None, None, None, "k", "l")
    ]
    assert all(result["error"]["status"] == 422 for result in results if "error" in result)
    assert results[3]["error"]["detail"] == "target is an unknown label; the labels are NEG, POS"
    assert results[5]["error"]["errors"] == [{"pointer": "#/text", "detail": "is required"}]


def test_options_hold_for_all_items(client):
    results = ask(client, [{"text": "great"}, {"text": "dull"}], words=True, html=True)["results"]
    assert all(result["result"]["words"] and result["result"]["html"] for result in results)


def test_order_is_kept_over_many_items(client):
    items = [{"id": str(number), "text": f"story {number} great"} for number in range(200)]
    results = ask(client, items)["results"]
    assert [result["id"] for result in results] == [item["id"] for item in items]
    assert all(
        result["result"]["rationale"][0]["start"] == len(item["text"]) - 5
        for result, item in zip(results, items, strict=True)
    )


def test_only_bad_items_is_still_an_answer(client):
    assert ask(client, [{"text": ""}])["summary"] == {"ok": 0, "failed": 1}


def test_too_many_or_no_items(serving, tiny_explainer):
    client = serving(tiny_explainer, max_batch_items=3).client
    for count, status in ((0, 422), (3, 200), (4, 422)):
        body = {"items": [{"text": "great"}] * count}
        assert client.post("/predict/batch", json=body).status_code == status


def test_failing_item_fails_alone(serving, held):
    client = serving(held).client
    texts = ["great", "a poison pill", "dull"]
    answer = ask(client, [{"text": text} for text in texts])
    assert [result["status"] for result in answer["results"]] == ["ok", "error", "ok"]
    error = answer["results"][1]["error"]
    assert error["status"] == 500
    assert "poison" not in str(error)
    # And the runner lives on.
    assert client.post("/predict", json={"text": "great"}).status_code == 200


def test_items_after_the_deadline_fail_alone(serving, held):
    # The first run of at most eight texts is done in time, the second is held beyond the deadline.
    client = serving(held, request_timeout=1.0, max_batch_tokens=64).client
    held.hold(at_call=2)
    answer = ask(client, [{"text": "great story"}] * 40)
    summary = answer["summary"]
    assert 1 <= summary["ok"] <= 8
    assert summary["ok"] + summary["failed"] == 40
    assert answer["results"][-1]["error"]["status"] == 504
