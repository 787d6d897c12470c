"""Whether a text's answer depends on its company: alone, batched, shuffled, under load over HTTP.

    python -m tests.bench.invariance [--texts 2000] [--device NAME] [--json FILE]

The answer of each text alone is the reference. Labels, scores, spans and the weight of each word
are compared bit for bit: Python writes and reads a float as JSON without loss. Company that is
refused is none: how many of its texts were answered is in the JSON, and too few are a failure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from models.device import shipped_bundle
from models.explainer import Explainer, Explanation
from models.progress import TextProgress
from service.settings import Settings
from tests.bench.load import Answer, connected, post, predict
from tests.bench.results import finish, say
from tests.bench.servers import SERVICE, server, share_cores
from tests.bench.texts import mixed_texts
from training.evaluation.machine import machine

CONNECTIONS = 16
BATCH = 24  # items of the requests to /predict/batch that come beside
COMPANY = 0.9  # share of what comes beside that must be answered
PARTS = ("labels", "spans", "weights")
Fingerprint = tuple[Any, Any, Any]  # label and scores, spans, weights


class Company(NamedTuple):
    """The texts that came beside: how many were sent, and how many were answered."""

    sent: int
    answered: int

    @property
    def enough(self) -> bool:
        """Whether there was company at all."""
        return self.answered > 0 and self.answered >= COMPANY * self.sent


def main() -> None:
    """Compares and prints; the status is 1 where anything differs, or was without company."""
    parser = argparse.ArgumentParser(description="Does a text's answer depend on its company?")
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="default: the shipped bundle")
    parser.add_argument("--device", default=Settings().device)
    parser.add_argument("--texts", type=int, default=2_000, metavar="N")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    path = options.bundle or shipped_bundle(options.device)
    explainer = Explainer.load(path, device=options.device)
    texts = mixed_texts(options.texts, seed=0)
    alone = []
    with TextProgress("alone", len(texts)) as progress:
        for text in texts:
            alone.append(of_explanation(explainer.explain([text])[0]))
            progress.add(1)
    ways = {}
    for name, order in _orders(len(texts)).items():
        say(name)
        answers = explainer.explain([texts[place] for place in order])
        found = [of_explanation(answer) for answer in answers]
        ways[name] = differences([alone[place] for place in order], found)
    say("over HTTP, with other requests beside")
    environment = {"L2E_BUNDLE": str(path), "L2E_DEVICE": options.device}
    with server(SERVICE, share_cores().server, environment=environment) as running:
        over_http, company = asyncio.run(ask_all(running.port, texts))
    ways["http"] = differences(alone, over_http)
    result = {
        "machine": machine(),
        "bundle": explainer.bundle.digest,
        "precision": explainer.session.precision or explainer.bundle.manifest.precision,
        "device": explainer.session.device,
        "texts": len(texts),
        "connections": CONNECTIONS,
        "company": company._asdict(),
        "different": ways,
    }
    finish(result, options.json)
    if not company.enough:
        sys.exit(
            f"of {company.sent} texts sent beside the others {company.answered} were answered, too"
            " few for company: give more --texts, or a machine with less to do"
        )
    sys.exit(any(sum(counts.values()) for counts in ways.values()))


def _orders(count: int) -> dict[str, list[int]]:
    return {
        "batched": list(range(count)),
        "shuffled": np.random.default_rng(1).permutation(count).tolist(),
    }


def of_explanation(answer: Explanation) -> Fingerprint:
    """What is compared, from Python."""
    spans = [span.to_dict() for span in answer.rationale]
    return (answer.label, answer.scores), spans, [word.weight for word in answer.words]


def of_body(body: Mapping[str, Any]) -> Fingerprint:
    """What is compared, from the JSON of /predict with `words`."""
    weights = [word["weight"] for word in body["words"]]
    return (body["label"], body["scores"]), body["rationale"], weights


def differences(wanted: Sequence[Fingerprint], found: Sequence[Fingerprint]) -> dict[str, int]:
    """How many texts have another label or score, other spans, other weights."""
    pairs = list(zip(wanted, found, strict=True))
    return {
        name: sum(one[place] != other[place] for one, other in pairs)
        for place, name in enumerate(PARTS)
    }


async def ask_all(port: int, texts: Sequence[str]) -> tuple[list[Fingerprint], Company]:
    """Asks for every text over several connections, in no order, with other work beside.

    Raises:
        RuntimeError: a text of these, not of the work beside, was refused.
    """
    found: dict[int, Fingerprint] = {}
    waiting = np.random.default_rng(2).permutation(len(texts)).tolist()
    others = mixed_texts(BATCH, seed=3)
    beside = [
        (post("/predict/batch", {"items": [{"text": text} for text in others]}), BATCH),
        *((predict(text, explain=False), 1) for text in others),
    ]

    async def ask() -> None:
        async with connected(port, 1) as (connection,):
            while waiting:
                place = waiting.pop()
                answer = await connection.ask(predict(texts[place], words=True))
                if answer.status != 200:
                    raise RuntimeError(f"the server answered a text with {answer.status}")
                found[place] = of_body(json.loads(answer.body))

    async def disturb() -> Company:
        sent = answered = number = 0
        async with connected(port, 1) as (connection,):
            while waiting:
                request, count = beside[number % len(beside)]
                answered += texts_answered(await connection.ask(request))
                sent += count
                number += 1
        return Company(sent, answered)

    company = asyncio.create_task(disturb())
    await asyncio.gather(company, *(ask() for _ in range(CONNECTIONS)))
    return [found[place] for place in range(len(texts))], company.result()


def texts_answered(answer: Answer) -> int:
    """How many texts an answer of /predict or /predict/batch has results for."""
    if answer.status != 200:
        return 0
    return int(json.loads(answer.body).get("summary", {"ok": 1})["ok"])


if __name__ == "__main__":
    main()
