"""The Python API of a trained pair: `Explainer.load(path).explain(texts)`.

Three stages, as in the service: encode (text to windows of ids), run (windows to arrays, in
batches of one padded length and a bounded number of tokens), decode (arrays to words, labels and
rationales). A text gets the same answer alone, in any batch and in any order.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from models import bundle as bundles
from models.answer import BoolArray, answer_flow, check_golden, logits_flow
from models.bundle import Bundle, MismatchError
from models.device import shipped_bundle
from models.flows import Flow, Result, run_flows
from models.rationale import Span, WordScores, rationale_spans
from models.rows import PREDICTED, FloatArray, Row, RowOutputs, run_rows
from models.session import DeviceName, OnnxSession
from models.text import Document, TextEncoder


@dataclass(frozen=True, slots=True)
class Explanation:
    """The label of a text and why.

    Attributes:
        text: the text itself.
        label: the predicted label.
        score: its probability.
        scores: the calibrated probability of each label, summing to 1.
        target: the label that the words support or oppose; by default the predicted one.
        word_scores: all words of the text in order, as numbers; empty where only the label was
            asked for.
        rationale: the spans that decided, ordered by start.
        windows: how many overlapping windows the text was read in.
    """

    text: str
    label: str
    score: float
    scores: dict[str, float]
    target: str
    word_scores: WordScores = field(repr=False)
    rationale: tuple[Span, ...]
    windows: int

    @property
    def words(self) -> tuple[Span, ...]:
        """All words of the text in order, made anew; empty where only the label was asked for."""
        return self.word_scores.spans()

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, spans as records of their six fields."""
        return {
            "text": self.text,
            "label": self.label,
            "score": self.score,
            "scores": dict(self.scores),
            "target": self.target,
            "words": [span.to_dict() for span in self.words],
            "rationale": [span.to_dict() for span in self.rationale],
            "windows": self.windows,
        }


class Explainer:
    """A classifier and its explainer, ready to answer.

    Args:
        bundle: what the pair is.
        session: its graph.

    Raises:
        MismatchError: tokenizer and manifest do not belong together.
    """

    def __init__(self, bundle: Bundle, session: OnnxSession) -> None:
        """Build the encoder from the bundle's tokenizer."""
        self.bundle = bundle
        self.session = session
        manifest = bundle.manifest
        try:
            self.encoder = TextEncoder.from_json(
                bundle.tokenizer_json, max_tokens=manifest.max_tokens, overlap=manifest.overlap
            )
        except Exception as error:  # the tokenizers library raises bare Exception
            raise MismatchError(
                f"{bundle.path}: tokenizer.json cannot be used ({error}): export the bundle again"
            ) from error
        if self.encoder.mask_token != manifest.mask_token:
            raise MismatchError(
                f"{bundle.path}: tokenizer.json masks with {self.encoder.mask_token!r}, the model"
                f" with {manifest.mask_token!r}: export the bundle again"
            )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        device: DeviceName = "auto",
        threads: int | None = None,
        check_golden: bool = True,
    ) -> "Explainer":
        """Read and verify a bundle, start its graph and ask it the golden question.

        Args:
            path: the directory of the bundle; None takes the one that `shipped_bundle` names.
            device: one of `models.device.DEVICES`; see `OnnxSession`.
            threads: of the CPU; None for all this process may use.
            check_golden: False skips the golden question.

        Raises:
            BundleError: the bundle is damaged, its parts do not belong together, or the answer
                differs from the golden one.
            DeviceError: another device than auto was asked for and does not work.
        """
        bundle = bundles.load(shipped_bundle(device) if path is None else path)
        session = OnnxSession(bundle.model_path, device=device, threads=threads)
        explainer = cls(bundle, session)
        if check_golden:
            explainer.check_golden()
        return explainer

    def check_golden(self) -> None:
        """Ask the golden question; MismatchError where the answer differs."""
        check_golden(self.bundle, self.session, self.encoder)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in the order of the logits."""
        return self.bundle.manifest.labels

    def encode(self, text: str) -> Document:
        """Split a text into words and windows; ValueError as in `models.text.check_text`."""
        return self.encoder.encode(text)

    def explain(
        self,
        texts: Sequence[str],
        target: str | Sequence[str | None] | None = None,
        *,
        max_words: int | None = None,
    ) -> list[Explanation]:
        """Label each text and explain its label, or another one.

        Args:
            texts: any number of texts of any length; each not blank and valid Unicode.
            target: the label to explain: one for all texts, or one per text; None means the
                predicted label of the text.
            max_words: the most words a rationale may take; None means 30 % of the words, rounded
                up.

        Returns:
            One explanation per text, in order.

        Raises:
            ValueError: a text that cannot be explained, an unknown target, or `max_words` below 1.
        """
        if max_words is not None and max_words < 1:
            raise ValueError(f"max_words is {max_words}: give at least 1")
        documents = self._encode_all(texts)
        targets = self._targets(target, len(documents))
        flows = [
            self._explain(document, wanted, max_words)
            for document, wanted in zip(documents, targets, strict=True)
        ]
        return self._drive(flows)

    def predict(
        self, texts: Sequence[str], target: str | Sequence[str | None] | None = None
    ) -> list[Explanation]:
        """Label each text without explaining: as `explain`, with no words and no rationale."""
        documents = self._encode_all(texts)
        targets = self._targets(target, len(documents))
        flows = [
            self._predict(document, wanted)
            for document, wanted in zip(documents, targets, strict=True)
        ]
        return self._drive(flows)

    def verify(self, explanation: Explanation) -> dict[str, float]:
        """Check a rationale against the classifier by masking words.

        Returns:
            For the target label, on the text against the text with the words of the rationale
            masked: `comprehensiveness`, the fall of its probability, and `log_odds_drop`, the fall
            of its natural log-odds (not calibrated); against the text with only these words kept:
            `sufficiency`, the fall of its probability (lower is better).
        """
        flow = self.verification_flow(explanation)
        return self._drive([flow])[0]

    def explanation_flow(
        self,
        text: str,
        target: str | None = None,
        *,
        explain: bool = True,
        max_words: int | None = None,
    ) -> Flow[Explanation]:
        """The way of one text, for callers that mix the rows of many: see `models.flows`.

        Args:
            text: as in `explain`.
            target: likewise.
            explain: False labels only, as `predict` does.
            max_words: as in `explain`.

        Raises:
            ValueError: as `explain`, when the first rows are asked for.
        """
        document = self.encode(text)
        (wanted,) = self._targets(target, 1)
        if explain:
            return (yield from self._explain(document, wanted, max_words))
        return (yield from self._predict(document, wanted))

    def verification_flow(self, explanation: Explanation) -> Flow[dict[str, float]]:
        """The way of a verification, see `verify`."""
        document = self.encode(explanation.text)
        starts = document.bounds[:, 0]
        inside = np.zeros(len(starts), dtype=bool)
        for span in explanation.rationale:
            first, last = np.searchsorted(starts, (span.start, span.end))
            inside[first:last] = True
        logits = yield from logits_flow(self.encoder, document, [None, ~inside, inside])
        target = self.labels.index(explanation.target)
        full, without, only = self.probabilities(logits)[:, target].tolist()
        others = np.delete(logits, target, axis=1)
        log_odds = logits[:, target] - np.logaddexp.reduce(others, axis=1)
        return {
            "comprehensiveness": full - without,
            "sufficiency": full - only,
            "log_odds_drop": float(log_odds[0] - log_odds[1]),
        }

    def run(self, rows: Sequence[Row]) -> list[RowOutputs]:
        """Run the graph once, on rows of one bucket that are all explained or all not."""
        return run_rows(self.session, self.encoder.pad_id, rows)

    def logits(
        self, documents: Sequence[Document], keep: Sequence[BoolArray] | None = None
    ) -> FloatArray:
        """Classify documents with some of their words masked: the black box of every metric.

        Args:
            documents: n documents from `encode`.
            keep: n arrays bool [words of the document]; the pieces of a dropped word become the
                mask token. None keeps all.

        Returns:
            float64 [n, C], not calibrated.
        """
        if not documents:
            return np.zeros((0, len(self.labels)))
        kept: Sequence[BoolArray | None] = [None] * len(documents) if keep is None else keep
        pairs = zip(documents, kept, strict=True)
        flows = [logits_flow(self.encoder, document, [mask]) for document, mask in pairs]
        return np.concatenate(self._drive(flows))

    def probabilities(self, logits: FloatArray) -> FloatArray:
        """Return calibrated probabilities float64 [n, C] of logits [n, C]."""
        scaled = logits / self.bundle.manifest.temperature
        exponents = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return np.asarray(exponents / exponents.sum(axis=1, keepdims=True))

    def _drive(self, flows: Sequence[Flow[Result]]) -> list[Result]:
        return run_flows(flows, self.run, self.session.batch_tokens, self.session.runners)

    def _explanation(
        self,
        document: Document,
        logits: FloatArray,
        target: int,
        words: WordScores | None = None,
        rationale: tuple[Span, ...] = (),
    ) -> Explanation:
        """Decode a document's logits into a label, beside what explains it.

        Args:
            document: that was classified.
            logits: float64 [C], not calibrated.
            target: the class that is explained, or `PREDICTED`.
            words: None where only the label was asked for.
            rationale: of these words.
        """
        probabilities = self.probabilities(logits[np.newaxis])[0].tolist()
        scores = dict(zip(self.labels, probabilities, strict=True))
        # From the logits: probabilities that round to 1 no longer tell classes apart.
        label = self.labels[int(logits.argmax())]
        wanted = label if target == PREDICTED else self.labels[target]
        return Explanation(
            document.text,
            label,
            scores[label],
            scores,
            wanted,
            WordScores.none(document.text) if words is None else words,
            rationale,
            len(document.windows),
        )

    def _predict(self, document: Document, target: int) -> Flow[Explanation]:
        (logits,) = yield from logits_flow(self.encoder, document)
        return self._explanation(document, logits, target)

    def _explain(self, document: Document, target: int, max_words: int | None) -> Flow[Explanation]:
        """Label, words and rationale of a document."""
        answer = yield from answer_flow(document, target)
        words = WordScores.of(document.text, document.bounds, answer.weights, answer.label_probs)
        rationale = rationale_spans(words, max_words)
        return self._explanation(document, answer.logits, target, words, rationale)

    def _encode_all(self, texts: Sequence[str]) -> list[Document]:
        """Encode texts; an error names the place of its text and never repeats it."""
        if isinstance(texts, str):
            raise TypeError("texts is one string: give a list, [text]")
        documents = []
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"texts[{index}] is of type {type(text).__name__}, not str")
            try:
                documents.append(self.encode(text))
            except ValueError as error:
                raise ValueError(f"texts[{index}]: {error}") from None
        return documents

    def _targets(self, target: str | Sequence[str | None] | None, count: int) -> list[int]:
        """Return a class index per text, `PREDICTED` for None."""
        if target is None or isinstance(target, str):
            target = [target] * count
        if len(target) != count:
            raise ValueError(f"{len(target)} targets for {count} texts: give one per text, or one")
        known = {label: index for index, label in enumerate(self.labels)}
        for label in target:
            if label is not None and label not in known:
                names = ", ".join(self.labels)
                raise ValueError(f"unknown target {label!r:.80}: the labels are {names}")
        return [PREDICTED if label is None else known[label] for label in target]
