"""The Python API of a trained pair: `Explainer.load(path).explain(texts)`.

Three stages, as in the service: encode (text to windows of ids), run (windows to arrays, in
batches of one padded length and a bounded number of tokens), decode (arrays to words, labels and
rationales). A text gets the same answer alone, in any batch and in any order.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from models import bundle as bundles
from models.answer import (
    PREDICTED,
    Answer,
    BoolArray,
    FloatArray,
    answer_documents,
    check_golden,
    document_logits,
)
from models.bundle import Bundle, MismatchError
from models.rationale import Span, rationale_spans, word_spans
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
        words: all words of the text in order; empty where only the label was asked for.
        rationale: the spans that decided, ordered by start.
        windows: how many overlapping windows the text was read in.
    """

    text: str
    label: str
    score: float
    scores: dict[str, float]
    target: str
    words: tuple[Span, ...]
    rationale: tuple[Span, ...]
    windows: int

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
        path: str | os.PathLike[str],
        *,
        device: DeviceName = "auto",
        threads: int | None = None,
        check_golden: bool = True,
    ) -> "Explainer":
        """Read and verify a bundle, start its graph and ask it the golden question.

        Args:
            path: the directory of the bundle.
            device: auto, cpu or cuda; see `OnnxSession`.
            threads: of the CPU; None for all this process may use.
            check_golden: False skips the golden question.

        Raises:
            BundleError: the bundle is damaged, its parts do not belong together, or the answer
                differs from the golden one.
            DeviceError: cuda was asked for and does not work.
        """
        bundle = bundles.load(path)
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
        answers = answer_documents(self.session, self.encoder, documents, targets)
        return [
            self._decode(document, answer, wanted, max_words)
            for document, answer, wanted in zip(documents, answers, targets, strict=True)
        ]

    def predict(
        self, texts: Sequence[str], target: str | Sequence[str | None] | None = None
    ) -> list[Explanation]:
        """Label each text without explaining: as `explain`, with no words and no rationale."""
        documents = self._encode_all(texts)
        targets = self._targets(target, len(documents))
        logits = self.logits(documents)
        return [
            self._label(document, of_document, wanted)
            for document, of_document, wanted in zip(documents, logits, targets, strict=True)
        ]

    def verify(self, explanation: Explanation) -> dict[str, float]:
        """Check a rationale against the classifier by masking words.

        Returns:
            For the target label, on the text against the text with the words of the rationale
            masked: `comprehensiveness`, the fall of its probability, and `log_odds_drop`, the fall
            of its natural log-odds (not calibrated); against the text with only these words kept:
            `sufficiency`, the fall of its probability (lower is better).
        """
        document = self.encode(explanation.text)
        starts = np.array([word.start for word in document.words])
        inside = np.zeros(len(starts), dtype=bool)
        for span in explanation.rationale:
            first, last = np.searchsorted(starts, (span.start, span.end))
            inside[first:last] = True
        keep = [np.ones_like(inside), ~inside, inside]
        logits = self.logits([document] * 3, keep)
        target = self.labels.index(explanation.target)
        full, without, only = self.probabilities(logits)[:, target].tolist()
        others = np.delete(logits, target, axis=1)
        log_odds = logits[:, target] - np.logaddexp.reduce(others, axis=1)
        return {
            "comprehensiveness": full - without,
            "sufficiency": full - only,
            "log_odds_drop": float(log_odds[0] - log_odds[1]),
        }

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
        return np.stack(document_logits(self.session, self.encoder, documents, keep))

    def probabilities(self, logits: FloatArray) -> FloatArray:
        """Return calibrated probabilities float64 [n, C] of logits [n, C]."""
        scaled = logits / self.bundle.manifest.temperature
        exponents = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return np.asarray(exponents / exponents.sum(axis=1, keepdims=True))

    def _label(self, document: Document, logits: FloatArray, target: int) -> Explanation:
        """Decode logits [C] into a label with its calibrated score."""
        probabilities = self.probabilities(logits[np.newaxis])[0].tolist()
        scores = dict(zip(self.labels, probabilities, strict=True))
        # From the logits: probabilities that round to 1 no longer tell classes apart.
        label = self.labels[int(logits.argmax())]
        wanted = label if target == PREDICTED else self.labels[target]
        windows = len(document.windows)
        return Explanation(document.text, label, scores[label], scores, wanted, (), (), windows)

    def _decode(
        self, document: Document, answer: Answer, target: int, max_words: int | None
    ) -> Explanation:
        """Decode an answer into a label, words and a rationale."""
        words = word_spans(document.words, answer.weights, answer.label_probs)
        rationale = rationale_spans(document.text, words, max_words)
        labelled = self._label(document, answer.logits, target)
        return replace(labelled, words=words, rationale=rationale)

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
