"""The load of `tests.bench.http` on servers made otherwise, each in a virtual environment.

    python -m tests.bench.peers.run --venvs DIR [--only NAME ...] [--borrow] [--json FILE]

`fastapi-fp32`, `fastapi-bf16`, `litserve-fp32` and `litserve-bf16` answer with label and rationale,
from the same classifier and explainer in torch; `infinity` (infinity-emb, its torch engine) with
the label alone, of the first 512 tokens, and is compared with ours without an explanation. It wants
numpy below 2 and transformers below 5, so its environment takes no other version from us than
that of torch, with which pip resolves it. MLServer 1.7.1 resolves with FastAPI and protobuf below
ours, but classifies texts only with its Hugging Face runtime: it is not measured.

Peers get the bundle in fp32 (--in-fp32), and so does `l2e, fp32`; the other rows of ours serve the
bundle that ships for the device. "As l2e answers" is as our session on the same bundle answers.

Environments are made in DIR once, with the versions of constraints.txt. With --borrow they see the
packages of this interpreter and only what a peer adds is installed, so that torch is not fetched
again. Before the load each peer answers a few texts, and how many labels and rationales are ours is
in the JSON and in the table; --check ends there. L2E_DEVICE chooses the device of our own server,
L2E_THREADS how many threads each server has.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models import SHIPPED
from models.explainer import Explainer
from service.settings import Settings
from tests.bench.latency import summary
from tests.bench.load import WARM, arrivals, clock, connected, flood, in_turn, post, predict
from tests.bench.results import finish, rounded, say
from tests.bench.servers import ROOT, SERVICE, Cores, pin_cores, running_on, server, share_cores
from tests.bench.texts import SHORT, mixed_texts
from training.evaluation.machine import machine
from training.evaluation.rivals import place_of
from training.evaluation.speed_report import peers_to_markdown
from training.export.graph import to_torch

CHECKED = 8  # texts
INFINITY = "reviews"  # the name of the model there


@dataclass(frozen=True)
class Peer:
    """A server made otherwise.

    Attributes:
        home: of its virtual environment, in DIR; empty for ours.
        needs: what is installed into it, beside what torch_pair needs.
        command: after the interpreter.
        environment: of the process.
        health: what it answers with 200 when it is ready.
        explains: whether its answers have rationales.
        request: of a text.
        read: the label and the spans of an answer's body.
        shipped: whether it serves the bundle that ships, and not the one in fp32.
    """

    home: str
    needs: tuple[str, ...]
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    health: str = "/health"
    explains: bool = True
    request: Callable[[str], bytes] = predict
    read: Callable[[Any], tuple[str, list[tuple[int, int]]]] = lambda body: (
        body["label"],
        [(span["start"], span["end"]) for span in body["rationale"]],
    )
    shipped: bool = False


def _classify(text: str) -> bytes:
    return post("/classify", {"model": INFINITY, "input": [text]})


def _best(body: Any) -> tuple[str, list[tuple[int, int]]]:
    return max(body["data"][0], key=lambda one: one["score"])["label"], []


def _torch_peers() -> Iterator[tuple[str, Peer]]:
    for name, needs in (("fastapi", ()), ("litserve", ("litserve>=0.2.16,<0.3",))):
        for precision in ("fp32", "bf16"):
            command = ("-m", f"tests.bench.peers.{name}_torch")
            yield f"{name}-{precision}", Peer(name, needs, command, {"PEER_PRECISION": precision})


PEERS: Mapping[str, Peer] = {
    "l2e": Peer("", (), SERVICE[1:], health="/health/ready", shipped=True),
    "l2e, label only": Peer(
        "", (), SERVICE[1:], health="/health/ready", explains=False, shipped=True,
        request=lambda text: predict(text, explain=False),
    ),
    "l2e, fp32": Peer("", (), SERVICE[1:], health="/health/ready"),
    **dict(_torch_peers()),
    "infinity": Peer(
        "infinity",
        ("infinity-emb[server,torch]==0.0.78",),
        (
            *("-c", "from infinity_emb.cli import cli; cli()", "v2", "--engine", "torch"),
            *("--device", "cpu", "--no-bettertransformer", "--host", "127.0.0.1"),
            *("--served-model-name", INFINITY),
        ),
        {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "HF_HUB_OFFLINE": "1",
         "INFINITY_LOG_LEVEL": "warning"},
        explains=False,
        request=_classify,
        read=_best,
    ),
}  # fmt: skip


def main() -> None:
    """Makes what is missing, measures and prints."""
    parser = argparse.ArgumentParser(description="The same load on servers made otherwise.")
    parser.add_argument("--venvs", type=Path, required=True, metavar="DIR")
    parser.add_argument("--only", nargs="+", choices=[*PEERS], default=[*PEERS], metavar="NAME")
    parser.add_argument("--borrow", action="store_true", help="see this interpreter's packages")
    parser.add_argument("--check", action="store_true", help="a few texts each, no load")
    parser.add_argument("--bundle", type=Path, default=Settings().bundle, help="that ships")
    parser.add_argument("--in-fp32", type=Path, default=SHIPPED, metavar="DIR", help="for peers")
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="of each flood and clock, in whole rounds"
    )
    parser.add_argument("--pin", action="store_true", help="cores of their own for both sides")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cores = pin_cores() if options.pin else share_cores()
    explainers = {
        shipped: Explainer.load(path, device=Settings().device)
        for shipped, path in ((True, options.bundle), (False, options.in_fp32))
    }
    servers = {}
    for name in options.only:
        peer = PEERS[name]
        explainer = explainers[peer.shipped]
        say(f"{name}: its environment")
        python = interpreter(peer, options.venvs, borrow=options.borrow)
        say(f"{name}: a few texts" + ("" if options.check else ", then the load"))
        log = options.venvs / f"{name.replace(', ', '-')}.log"
        with (
            _served(peer, python, explainer, cores, log) as port,
            running_on(cores.client),
        ):
            found = asyncio.run(compare(peer, port, explainer))
            if not options.check:
                found |= asyncio.run(measure(peer, port, options.seconds))
        precision = explainer.bundle.manifest.precision
        servers[name] = {"explains": peer.explains, "bundle": precision, **found}
    result = {
        "machine": machine(),
        "cores": cores.to_dict(),
        "bundle": explainers[True].bundle.digest,
        "precision": place_of(explainers[True]).precision,
        "in_fp32": explainers[False].bundle.digest,
        "runtime": {"device": explainers[True].session.device, "threads": threads_of(cores)},
        "seconds": options.seconds,
        "servers": servers,
    }
    finish(result, options.json, None if options.check else peers_to_markdown)


def threads_of(cores: Cores) -> int:
    """How many threads each server gets: what L2E_THREADS asks for, or one for each processor."""
    return min(Settings().threads or cores.threads(), cores.threads())


def interpreter(peer: Peer, folder: Path, *, borrow: bool) -> str:
    """The Python of a peer's environment, which is made where it is missing."""
    if not peer.home:
        return sys.executable
    home = folder.resolve() / peer.home
    python = home / "bin" / "python"
    done = home / ".done"
    if done.exists():
        return str(python)
    venv.EnvBuilder(with_pip=True, clear=True).create(home)
    own = peer.home == "infinity"
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if own:
        pins = [line for line in pins if line.startswith("torch==")]
    (home / "constraints.txt").write_text("\n".join(pins), encoding="utf-8")
    wanted = [*peer.needs] if own else [*peer.needs, "fastapi", "uvicorn"]
    if borrow:
        [site] = home.glob("lib/*/site-packages")
        (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    elif not own:
        wanted.append(f"{ROOT}[cpu,train]")
    command = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    command += ["--constraint", home / "constraints.txt"]
    subprocess.run([*map(str, command), *wanted], check=True)
    done.touch()
    return str(python)


@contextmanager
def _served(
    peer: Peer, python: str, explainer: Explainer, cores: Cores, log: Path
) -> Iterator[int]:
    """Starts a peer on the explainer's bundle; yields its port."""
    log.parent.mkdir(parents=True, exist_ok=True)
    bundle = str(explainer.bundle.path)
    environment = {"L2E_BUNDLE": bundle, "PEER_BUNDLE": bundle, **peer.environment}
    threads = str(threads_of(cores))
    environment |= {"L2E_THREADS": threads, "PEER_THREADS": threads, "OMP_NUM_THREADS": threads}
    with tempfile.TemporaryDirectory() as folder:
        command = [python, *peer.command]
        if peer.home == "infinity":
            save_checkpoint(explainer, Path(folder))
            command += ["--model-id", folder]
        with server(
            command, cores.server, environment=environment, health=peer.health, log=log
        ) as found:
            yield found.port


def save_checkpoint(explainer: Explainer, folder: Path) -> None:
    """Writes the classifier as `transformers` reads it."""
    black_box, _ = to_torch(explainer.bundle)
    black_box.model.config.id2label = dict(enumerate(black_box.labels))
    black_box.model.config.label2id = {label: row for row, label in enumerate(black_box.labels)}
    black_box.save(folder)
    special = {"pad_token": "[PAD]", "mask_token": "[MASK]", "unk_token": "[UNK]"}
    ends = {"cls_token": "[CLS]", "sep_token": "[SEP]", "model_max_length": 512}
    told = {"tokenizer_class": "PreTrainedTokenizerFast", **special, **ends}
    (folder / "tokenizer_config.json").write_text(json.dumps(told), encoding="utf-8")


async def compare(peer: Peer, port: int, explainer: Explainer) -> dict[str, Any]:
    """How many of a few texts get our label, and our rationale where there is one.

    Returns:
        `same_as_ours`: `of` (how many were asked), `labels`, `rationales` where the peer explains,
        and `all`, whether nothing is different. A text that is refused has neither.
    """
    texts = [SHORT, *mixed_texts(CHECKED - 1, seed=1)]
    labels = spans = 0
    async with connected(port, 1) as (connection,):
        for text, ours in zip(texts, explainer.explain(texts), strict=True):
            answer = await connection.ask(peer.request(text))
            if answer.status != 200:
                say(f"a text was answered with {answer.status}: {answer.body[:200]!r}")
                continue
            label, found = peer.read(json.loads(answer.body))
            labels += label == ours.label
            spans += found == [(span.start, span.end) for span in ours.rationale]
    same = {"labels": labels} | ({"rationales": spans} if peer.explains else {})
    everything = all(count == len(texts) for count in same.values())
    return {"same_as_ours": {"of": len(texts), **same, "all": everything}}


async def measure(peer: Peer, port: int, seconds: float) -> dict[str, Any]:
    """Idle latency, texts a second with all connections busy, and latency at 70 % of that."""
    requests = [peer.request(text) for text in mixed_texts(400, seed=0)]
    await flood(port, requests[:WARM], min(2.0, seconds))
    idle = await in_turn(port, [peer.request(SHORT)] * 100)
    alone = (await in_turn(port, requests)).quantile(0.5)
    busy = await flood(port, requests, seconds)
    due = clock(0.7 * busy.rate, seconds, poisson=True, whole=len(requests))
    return {
        "idle_p50_ms": rounded(idle.quantile(0.5), 2),
        "texts_per_second": round(busy.rate, 2),
        **busy.counts(),
        "load_70": summary(await arrivals(port, requests, due.tolist()), alone),
    }


if __name__ == "__main__":
    main()
