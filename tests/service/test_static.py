"""The page, the documentation and the API's description of itself."""

import re
from pathlib import Path

import pytest

import service
from service.schemas import Health, Models

FOLDER = Path(service.__file__).parent / "page"


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/docs", "text/html; charset=utf-8"),
        ("/openapi.json", "application/json"),
        ("/page/app.js", "text/javascript; charset=utf-8"),
        ("/page/app.css", "text/css; charset=utf-8"),
        ("/page/icon.svg", "image/svg+xml"),
    ],
)
def test_files_are_served(client, path, media_type):
    response = client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == media_type
    head = client.head(path)
    assert head.status_code == 200
    assert head.content == b""


@pytest.mark.parametrize("file", sorted(FOLDER.iterdir()), ids=lambda file: file.name)
def test_files_need_nothing_from_elsewhere(file):
    text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|(src|href)=\"//|@import|url\(", text)


@pytest.mark.parametrize("name", ["index.html", "docs.html"])
def test_pages_have_no_inline_code(name):
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|javascript:", text)


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.js")), ids=lambda file: file.name)
def test_scripts_build_text_never_markup(file):
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)


def test_models_shows_the_card(client):
    body = client.get("/models").json()
    Models.model_validate(body, strict=True)
    (card,) = body["models"]
    assert (card["name"], card["labels"], card["device"]) == ("tiny", ["NEG", "POS"], "cpu")
    assert card["card"]["language"] == "English"


def test_health(client):
    for name in ("live", "ready"):
        body = client.get(f"/health/{name}").json()
        assert Health.model_validate(body).status == name


def test_description_is_whole(client):
    api = client.get("/openapi.json").json()
    assert set(api["paths"]) == {
        *(
            "/predict",
            "/predict/batch",
            "/models",
            "/health/live",
            "/health/ready",
            "/metrics",
            "/predict/stream",
        )
    }
    schemas = api["components"]["schemas"]
    names = set(re.findall(r"#/components/schemas/(\w+)", str(api)))
    assert names <= set(schemas)
    assert not any("__" in name for name in schemas)
    for path in ("/predict", "/predict/batch"):
        statuses = set(api["paths"][path]["post"]["responses"])
        assert statuses == {"200", "400", "413", "415", "422", "500", "503", "504"}
    assert schemas["BatchRequest"]["properties"]["items"]["maxItems"] == 256
    assert schemas["PredictRequest"]["properties"]["text"]["maxLength"] == 1_000_000
    assert schemas["PredictRequest"]["required"] == ["text"]


def test_documented_examples_work(client):
    paths = client.get("/openapi.json").json()["paths"]
    for path in ("/predict", "/predict/batch"):
        content = paths[path]["post"]["requestBody"]["content"]["application/json"]
        assert client.post(path, json=content["example"]).status_code == 200
