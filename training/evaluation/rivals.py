"""What a reply is timed against: our teachers, and packages as people use them.

All of them explain the bundle's own classifier and get its label as well. Teachers and packages run
on the torch classifier rebuilt from the bundle (of one in int8: its weights, with activations in
floats), on the processor in fp32, whatever the reply runs on; `lime_onnx` is LIME on the session
that replies, so that only the number of evaluations differs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
from lime.lime_text import LimeTextExplainer

from models.explainer import Explainer
from models.text import Document, FloatArray
from training.attribution.embeddings import TOKEN_BUDGET, embed, frozen, group_by_shape
from training.attribution.gradient import multiply
from training.attribution.record import PREDICTED
from training.attribution.teachers import TEACHERS, teacher_named
from training.blackbox.graph import OnnxBlackBox
from training.blackbox.huggingface import HuggingFaceBlackBox
from training.blackbox.protocol import BlackBox, softmax

TORCH, ONNX = "torch", "ONNX Runtime"
# Name to the samples taken where nobody says how many; 0 where there are none.
PACKAGES: Mapping[str, int] = {"lime_onnx": 200, "lime_package": 1_000, "captum_gradient": 0}
ALL = (*TEACHERS, *PACKAGES)


class Place(NamedTuple):
    """Where something runs, and in which precision it computes."""

    device: str
    precision: str


@dataclass(frozen=True)
class Rival:
    """Another way to explain the same classifier.

    Attributes:
        name: what the command line calls it.
        budget: samples, or steps; 0 where the text decides.
        how: the library that computes, and how it is driven.
        place: where that is.
        evaluations: of the classifier for one text, a backward pass counted with its forward pass.
        explain: labels and explains texts.
    """

    name: str
    budget: int
    how: str
    place: Place
    evaluations: Callable[[Document], int]
    explain: Callable[[Sequence[str]], object]

    def tokens(self, documents: Sequence[Document]) -> int:
        """Returns how many tokens the classifier sees, which is what the time goes into."""
        return sum(
            self.evaluations(document) * sum(len(window.input_ids) for window in document.windows)
            for document in documents
        )


def place_of(explainer: Explainer) -> Place:
    """Returns where a bundle's session runs."""
    session = explainer.session
    return Place(session.device, session.precision or explainer.bundle.manifest.precision)


def rivals(
    explainer: Explainer, black_box: HuggingFaceBlackBox, budgets: Mapping[str, int]
) -> list[Rival]:
    """Builds what the names of the command line mean.

    Args:
        explainer: the bundle.
        black_box: its classifier, in torch.
        budgets: name to samples or steps; see `ALL` for the names.
    """
    found = []
    on_torch = Place(black_box.model.device.type, black_box.precision)
    for name, budget in budgets.items():
        if name == "lime_onnx":
            how = f"{ONNX}; our LIME"
            one = _teacher("lime", OnnxBlackBox(explainer), budget, how, place_of(explainer))
            found.append(replace(one, name=name))
        elif name == "lime_package":
            how = f"{TORCH}; LimeTextExplainer(bow=False) with masked words, batches of one length"
            call = partial(_lime, black_box, budget)
            found.append(Rival(name, budget, how, on_torch, _always(budget), call))
        elif name == "captum_gradient":
            how = f"{TORCH}; the label, then captum's InputXGradient on the word embeddings"
            call = partial(_gradient, black_box)
            found.append(Rival(name, 0, how, on_torch, _always(2), call))
        else:
            found.append(_teacher(name, black_box, budget, TORCH, on_torch))
    return found


def _always(evaluations: int) -> Callable[[Document], int]:
    def count(_: Document) -> int:
        return evaluations

    return count


def _teacher(name: str, black_box: BlackBox, budget: int, how: str, place: Place) -> Rival:
    teacher = teacher_named(name)

    def explain(texts: Sequence[str]) -> object:
        documents = [black_box.encoder.encode(text) for text in texts]
        targets = np.full(len(texts), PREDICTED, dtype=np.int64)
        return teacher.attribute(black_box, documents, targets, budget=budget, seed=0)

    def spent(document: Document) -> int:
        return teacher.spent(document, budget)

    return Rival(name, budget, how, place, spent, explain)


def _lime(black_box: HuggingFaceBlackBox, samples: int, texts: Sequence[str]) -> None:
    def classify(masked: list[str]) -> FloatArray:
        return softmax(black_box.logits([black_box.encoder.encode(text) for text in masked]))

    explainer = LimeTextExplainer(
        bow=False, mask_string=black_box.encoder.mask_token, split_expression=r"\s+", random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package's own, of its regular expressions
        for text in texts:
            explainer.explain_instance(text, classify, top_labels=1, num_samples=samples)


def _gradient(black_box: HuggingFaceBlackBox, texts: Sequence[str]) -> None:
    documents = [black_box.encoder.encode(text) for text in texts]
    with frozen(black_box.model):  # without gradients of the weights, which nobody asked for
        targets = black_box.logits(documents).argmax(axis=1)
        for group in group_by_shape(documents, TOKEN_BUDGET):
            batch = embed(black_box, [documents[row] for row in group], targets[group])
            multiply(batch, 0).sum(-1)
