"""From the explainer's answers to the bodies of section 5 of the design."""

import json
from typing import Any

import pydantic_core

from models.bundle import Bundle
from models.explainer import Explainer
from models.rationale import to_html
from models.views import one_line
from service.backend import Backend
from service.batching.tickets import Outcome, Reply
from service.errors import Problem
from service.schemas import Options


def prediction(reply: Reply, options: Options, bundle: Bundle) -> dict[str, Any]:
    """The body of one answered text."""
    explanation = reply.explanation
    body: dict[str, Any] = {
        "label": explanation.label,
        "score": explanation.score,
        "scores": explanation.scores,
        "rationale": [span.to_dict() for span in explanation.rationale],
        "target": explanation.target,
        "windows": explanation.windows,
    }
    if options.words:
        body["words"] = [span.to_dict() for span in explanation.words]
    if options.html:
        body["html"] = to_html(explanation.text, explanation.rationale)
    if reply.verification is not None:
        body["verify"] = dict(reply.verification)
    body["model"] = {"name": bundle.manifest.name, "digest": bundle.digest}
    body["offset_unit"] = "codepoint"
    return body


def item(
    index: int, name: str | None, outcome: Outcome, options: Options, backend: Backend
) -> tuple[bytes, bool]:
    """The JSON of one of several texts, its result or its error, and whether it is a result.

    It is one line for whatever its reader takes for the end of a line.

    Args:
        index: of the item.
        name: the client's own id for it.
        outcome: what became of it; a `Problem` is told as it is.
        options: of the request.
        backend: that answered.
    """
    head: dict[str, Any] = {"index": index} | ({} if name is None else {"id": name})
    if isinstance(outcome, Reply):
        try:
            result = prediction(outcome, options, backend.explainer.bundle)
            line = to_json(head | {"status": "ok", "result": result}).decode()
            return one_line(line).encode(), True
        except Exception as error:  # noqa: BLE001 - the other items are not to suffer
            outcome = error
    problem = outcome if isinstance(outcome, Problem) else backend.problem(outcome)
    return to_json(head | {"status": "error", "error": problem.body()}), False


def card(explainer: Explainer) -> dict[str, Any]:
    """The card of the loaded bundle."""
    manifest = explainer.bundle.manifest
    return {
        "name": manifest.name,
        "digest": explainer.bundle.digest,
        "labels": list(explainer.labels),
        "schema_version": manifest.schema_version,
        "max_tokens": manifest.max_tokens,
        "overlap": manifest.overlap,
        "temperature": manifest.temperature,
        "precision": manifest.precision,
        "device": explainer.session.device,
        "provider": explainer.session.provider,
        "teacher": dict(manifest.teacher),
        "recipe": dict(manifest.recipe),
        "card": dict(manifest.card),
        "times": dict(manifest.times),
        "versions": dict(manifest.versions),
    }


def to_json(body: object) -> bytes:
    """Compact UTF-8 JSON.

    Raises:
        ValueError: a number that JSON does not have; the models never answer one.
    """
    found = pydantic_core.to_json(body, inf_nan_mode="constants")  # four times as fast as json
    if b"NaN" in found or b"Infinity" in found:  # a word of the text, unless something is broken
        json.dumps(body, allow_nan=False)
    return found
