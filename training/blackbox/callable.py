"""Any function from texts to probabilities as a black box."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.text import BoolArray, Document, FloatArray, IntArray, check_text, word_bounds

EPS = 1e-6  # probabilities are clipped to [EPS, 1 - EPS]
ROWS = 256  # texts of one call
_NAMES = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
_SPEC = re.compile(f"{_NAMES}:{_NAMES}")

Predict = Callable[[list[str]], npt.ArrayLike]


class CallableError(ValueError):
    """A function cannot be used as a black box; one line with the cure."""


class FunctionError(RuntimeError):
    """A function raised an error; the message names both."""


class WordEncoder:
    """Splits texts into words; a function reads text, so there are no pieces and no windows.

    Args:
        mask_token: the text that stands in place of a dropped word.
    """

    def __init__(self, mask_token: str) -> None:
        self.mask_token = mask_token

    def encode(self, text: str) -> Document:
        """See `Encoder.encode`."""
        check_text(text)
        return Document(text, word_bounds(text), ())


class CallableBlackBox:
    """A function `list[str] -> array [n, classes]` of probabilities.

    Its `logits` are the logarithms of the probabilities, clipped to [`eps`, 1 - `eps`]; which class
    is predicted, `predicted` decides before they are clipped.

    Args:
        predict: the function.
        labels: names of the classes; None calls them "0", "1", … as many as the function gives.
        mask_string: stands in place of dropped words.
        name: of the function, for messages.

    Raises:
        CallableError: when the function does not give what it should.
        FunctionError: when it raises an error, now or later.
    """

    def __init__(
        self,
        predict: Predict,
        labels: Sequence[str] | None = None,
        *,
        mask_string: str = "[MASK]",
        name: str = "the function",
    ) -> None:
        self.predict = predict
        self.name = name
        self.encoder = WordEncoder(mask_string)
        self.eps: float | None = EPS
        self.labels: tuple[str, ...] = ()  # as many as the function says
        classes = self._probabilities(["a"]).shape[1]
        self.labels = tuple(map(str, range(classes))) if labels is None else tuple(labels)
        if len(self.labels) != classes:
            raise CallableError(
                f"{name} gives {classes} classes, but {len(self.labels)} labels are named: "
                "name as many with --labels"
            )

    @classmethod
    def from_spec(
        cls, spec: str, labels: Sequence[str] | None = None, *, mask_string: str = "[MASK]"
    ) -> CallableBlackBox:
        """Imports `module:function` or `module:object.method`; see `import_function`.

        Raises:
            CallableError: when there is no such module or function.
        """
        return cls(import_function(spec), labels, mask_string=mask_string, name=spec)

    def logits(
        self, documents: Sequence[Document], keep: Sequence[BoolArray] | None = None
    ) -> FloatArray:
        """See `BlackBox.logits`; equal texts are asked for once."""
        texts = [document.text for document in documents]
        if keep is not None:
            texts = [
                mask_words(document, kept, self.encoder.mask_token)
                for document, kept in zip(documents, keep, strict=True)
            ]
        different = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        found = np.log(np.clip(self._ask([*different]), EPS, 1.0 - EPS))
        result: FloatArray = found[[different[text] for text in texts]]
        return result

    def predicted(self, documents: Sequence[Document], logits: FloatArray) -> IntArray:
        """Returns the class with the largest probability, the first of equal ones, int64 [n].

        Two classes beyond `1 - eps`, or all below `eps`, look alike once they are clipped: only
        for such documents the function is asked again.

        Args:
            documents: whole texts.
            logits: float64 [n, classes], of these documents.
        """
        classes: IntArray = logits.argmax(axis=1)
        alike = np.flatnonzero(
            (logits == logits.max(axis=1, keepdims=True)).sum(axis=1) > 1
        ).tolist()
        if alike:
            classes[alike] = self._ask([documents[row].text for row in alike]).argmax(axis=1)
        return classes

    def _ask(self, texts: list[str]) -> FloatArray:
        """Returns the probabilities of any number of texts, float64 [texts, classes]."""
        parts = [
            self._probabilities(texts[first : first + ROWS]) for first in range(0, len(texts), ROWS)
        ]
        return np.concatenate([np.zeros((0, len(self.labels))), *parts])

    def _probabilities(self, texts: list[str]) -> FloatArray:
        """Calls the function and checks its answer, float64 [texts, classes]."""
        try:
            given = self.predict(list(texts))
        except Exception as error:
            raise FunctionError(
                f"{self.name} failed on {len(texts)} texts (masked copies among them): "
                f"{type(error).__name__}: {' '.join(str(error).split())}"
            ) from error
        try:
            # A copy: a function may fill the same array at each call.
            found = np.array(_detached(given), dtype=np.float64)
        except (TypeError, ValueError, RuntimeError):
            raise CallableError(
                f"{self.name} returned {type(given).__name__}, not an array of numbers "
                "[texts, classes]"
            ) from None
        classes = len(self.labels)
        good = found.ndim == 2 and len(found) == len(texts) and found.shape[1] >= 2
        if not good or found.shape[1] != (classes or found.shape[1]):
            raise CallableError(
                f"{self.name} returned shape {found.shape} for {len(texts)} texts, not "
                f"({len(texts)}, {classes or 'classes'}): return the probability of each class, "
                "two at least"
            )
        if np.isnan(found).any():
            raise CallableError(f"{self.name} returned NaN: return probabilities for any text")
        # A little over 1 is rounding; logits are a misunderstanding.
        if not np.isfinite(found).all() or found.min() < -1e-3 or found.max() > 1 + 1e-3:
            raise CallableError(
                f"{self.name} returned numbers outside 0 … 1: return probabilities, not logits"
            )
        return found


def _detached(given: Any) -> Any:
    """Turns tensors, also in a list, into what numpy takes, without importing torch."""
    if hasattr(given, "detach"):
        return given.detach().cpu().double().numpy()
    if isinstance(given, (list, tuple)):
        return [_detached(part) for part in given]
    return given


def is_function_spec(name: str) -> bool:
    """Says whether a name reads `module:function` or `module:object.method`.

    `package:FOLDER/…` is a checkpoint.
    """
    return _SPEC.fullmatch(name) is not None and not name.startswith("package:")


def import_function(spec: str) -> Predict:
    """Imports `module:function`, or a method such as `module:object.method`.

    The current folder is searched last.

    Raises:
        CallableError: when there is no such module or function.
    """
    module, _, path = spec.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        cure = f"start l2e in the folder of {module}.py, or install it"
        if not f"{module}.".startswith(f"{missing}."):
            cure = f"{module} needs it: install it"
        raise CallableError(f"{spec}: no module {missing}; {cure}") from None
    found: Any = imported
    owner, what = f"module {module}", "attribute" if "." in path else "function"
    for name in path.split("."):
        if not hasattr(found, name):
            raise CallableError(f"{spec}: {owner} has no {what} {name}")
        found = getattr(found, name)
        owner = f"{name}, a {type(found).__name__},"
    if not callable(found):
        raise CallableError(f"{spec} is a {type(found).__name__}, not a function of texts")
    function: Predict = found
    return function


def source_digest(function: Predict) -> str:
    """Returns a digest of the file that defines a function, so far as one can be found.

    What the function loads when it runs, such as weights, is beyond this.
    """
    try:
        path = inspect.getsourcefile(inspect.unwrap(function))
        content = b"" if path is None else Path(path).read_bytes()
    except (TypeError, OSError):
        content = b""
    return hashlib.sha256(content).hexdigest()


def mask_words(document: Document, keep: BoolArray, mask_string: str) -> str:
    """Returns the text with each dropped word replaced, everything between words untouched."""
    parts: list[Any] = []
    end = 0
    for word, kept in zip(document.words, keep.tolist(), strict=True):
        parts += [document.text[end : word.start], word.text if kept else mask_string]
        end = word.end
    return "".join([*parts, document.text[end:]])
