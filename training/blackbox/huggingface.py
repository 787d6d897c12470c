"""Any sequence-classification checkpoint of `transformers` as a black box."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from models.text import (
    BoolArray,
    Document,
    FloatArray,
    IntArray,
    TextEncoder,
    bucket_length,
    pad_rows,
    plan_batches,
)
from training.blackbox.cnn import CnnConfig, CnnForSequenceClassification
from training.blackbox.mlp import MlpConfig, MlpForSequenceClassification
from training.blackbox.rationale import RationaleConfig, RationaleForSequenceClassification
from training.data.example import DataError
from training.data.load import package_path

MAX_TOKENS = 512  # longest window of a checkpoint that does not name its own
OVERLAP = 32
WINDOWS = "l2e_windows"  # where config.json of a black box trained here names them
TOKEN_BUDGET = 4096  # padded tokens of a forward pass; larger batches are no faster on CPUs

# transformers reports every freshly initialised head as a load problem.
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

AutoConfig.register(CnnConfig.model_type, CnnConfig)
AutoConfig.register(MlpConfig.model_type, MlpConfig)
AutoConfig.register(RationaleConfig.model_type, RationaleConfig)
AutoModelForSequenceClassification.register(CnnConfig, CnnForSequenceClassification)
AutoModelForSequenceClassification.register(MlpConfig, MlpForSequenceClassification)
AutoModelForSequenceClassification.register(RationaleConfig, RationaleForSequenceClassification)


class HuggingFaceBlackBox:
    """A `transformers` classifier with its text encoder; its answers are logits.

    Args:
        model: takes `input_ids` and `attention_mask`, gives `logits`; used in eval mode.
        encoder: for the model's tokenizer.
        labels: label names, in the order of the logits.
        precision: `bf16` autocasts the forward pass, three times as fast where the processor
            multiplies bfloat16, logits off by up to 0.03.
    """

    eps: float | None = None

    def __init__(
        self,
        model: PreTrainedModel,
        encoder: TextEncoder,
        labels: Sequence[str],
        precision: str = "fp32",
    ) -> None:
        self.model = model.eval()
        self.encoder = encoder
        self.labels = tuple(labels)
        self.precision = precision

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: str,
        labels: Sequence[str] | None,
        *,
        max_tokens: int | None = None,
        overlap: int | None = None,
        new_head: bool = True,
    ) -> HuggingFaceBlackBox:
        """Loads `package:MODULE/FOLDER`, a local folder or a hub id.

        Args:
            checkpoint: an encoder (a new head is initialised) or a fine-tuned classifier.
            labels: names of the classes; None takes those of the checkpoint.
            max_tokens: longest window; lowered to what the model can take. None takes that of the
                saved black box, see `save`, else `MAX_TOKENS`.
            overlap: between windows, in tokens; None takes that of the saved one, else `OVERLAP`.
            new_head: whether an encoder may get a new head, to be trained.

        Raises:
            DataError: when there is no such checkpoint, it lacks a fast tokenizer, it has been
                fine-tuned for another number of labels or names them in another order, or it does
                not choose one of at least two classes and a new head is not wanted.
        """
        where = checkpoint
        if checkpoint.startswith("package:"):
            where = str(package_path(checkpoint.removeprefix("package:")))
        try:
            config = AutoConfig.from_pretrained(where)
            if labels is not None:
                _insist_on_order(labels, config, checkpoint)
                config.num_labels = len(labels)
                config.id2label = dict(enumerate(labels))
                config.label2id = {label: row for row, label in enumerate(labels)}
            # Dropout inside attention would turn the fused attention kernel off.
            if hasattr(config, "attention_probs_dropout_prob"):
                config.attention_probs_dropout_prob = 0.0
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                where, config=config, dtype=torch.float32, output_loading_info=True
            )
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"no checkpoint {checkpoint}: {reason}") from None
        except RuntimeError:  # transformers found a tensor of another shape
            raise DataError(
                f"checkpoint {checkpoint} is a classifier with other labels than the "
                f"{config.num_labels} asked for: name its own labels, or start from its encoder"
            ) from None
        if loading["missing_keys"] and not new_head:
            raise DataError(
                f"checkpoint {checkpoint} is not fine-tuned as a classifier (it has no "
                f"{min(loading['missing_keys'])}): train it first, for example with l2e train"
            )
        if not new_head:
            _insist_on_choice(config, checkpoint)
        names = _label_names(config)
        saved = getattr(config, WINDOWS, {"max_tokens": MAX_TOKENS, "overlap": OVERLAP})
        wanted = saved["max_tokens"] if max_tokens is None else max_tokens
        text_encoder = TextEncoder.from_json(
            _tokenizer_json(where, checkpoint),
            max_tokens=longest_window(model, wanted),
            overlap=saved["overlap"] if overlap is None else overlap,
        )
        return cls(model, text_encoder, names)

    def save(self, folder: Path) -> None:
        """Writes safetensors, config.json, which also names the windows, and tokenizer.json."""
        windows = {"max_tokens": self.encoder.max_tokens, "overlap": self.encoder.overlap}
        setattr(self.model.config, WINDOWS, windows)
        self.model.save_pretrained(folder)
        (folder / "tokenizer.json").write_text(self.encoder.to_json(), encoding="utf-8")

    def logits(
        self, documents: Sequence[Document], keep: Sequence[BoolArray] | None = None
    ) -> FloatArray:
        """See `BlackBox.logits`; logits of a document's windows are averaged in float64.

        Windows with the same ids, such as those that a masked word does not reach, are
        evaluated once.
        """
        rows, windows, owner = self._rows(documents, keep)
        outputs = np.zeros((len(rows), len(self.labels)))
        for batch in plan_batches([len(row) for row in rows], TOKEN_BUDGET):
            outputs[batch] = self._forward([rows[row] for row in batch])
        total = np.zeros((len(documents), len(self.labels)))
        np.add.at(total, owner, outputs[windows])
        return total / np.bincount(owner, minlength=len(documents))[:, None]

    def hidden_states(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Returns the embedding output and each layer's states, [batch, tokens, hidden] each."""
        states: tuple[Tensor, ...] = self.model(
            input_ids=ids, attention_mask=mask, output_hidden_states=True
        ).hidden_states
        return states

    def _rows(
        self, documents: Sequence[Document], keep: Sequence[BoolArray] | None
    ) -> tuple[list[IntArray], IntArray, IntArray]:
        """Returns the different rows of ids; each window's row and its document's number."""
        rows: list[IntArray] = []
        known: dict[bytes, int] = {}
        windows, owner = [], []
        for number, document in enumerate(documents):
            for window in document.windows:
                ids = window.input_ids
                if keep is not None:
                    ids = self.encoder.masked_ids(window, keep[number])
                row = known.setdefault(ids.tobytes(), len(rows))
                if row == len(rows):
                    rows.append(ids)
                windows.append(row)
                owner.append(number)
        return rows, np.array(windows, dtype=np.int64), np.array(owner, dtype=np.int64)

    def _forward(self, rows: Sequence[IntArray]) -> FloatArray:
        ids, mask = pad_rows(rows, bucket_length(len(rows[0])), self.encoder.pad_id)
        with torch.inference_mode(), self.autocast():
            output = self.model(
                input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)
            )
        result: FloatArray = output.logits.double().numpy()
        return result

    def autocast(self) -> torch.autocast:
        """Returns the context for the forward pass at this precision."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16")


def longest_window(model: PreTrainedModel, wanted: int) -> int:
    """Returns `wanted` tokens, or fewer where the model has no positions for such a row.

    A row is padded to its bucket, and the pads have positions, too.
    """
    positions = getattr(model.config, "max_position_embeddings", -1)
    if isinstance(model, (CnnForSequenceClassification, MlpForSequenceClassification)):
        return min(wanted, positions)  # of whole windows: their pads have no positions
    for name, module in model.named_modules():
        # RoBERTa and its kin count from the one behind that of the pads.
        if (
            name.endswith("position_embeddings")
            and getattr(module, "padding_idx", None) is not None
        ):
            positions = min(positions, module.num_embeddings - module.padding_idx - 1)
    if positions < 0:  # as XLNet's, which are relative
        return wanted
    return max(tokens for tokens in range(wanted + 1) if bucket_length(tokens) <= positions)


def _label_names(config: PretrainedConfig) -> tuple[str, ...]:
    names: Any = config.id2label or {}
    return tuple(str(names[row]) for row in range(len(names)))


def _insist_on_order(labels: Sequence[str], config: PretrainedConfig, checkpoint: str) -> None:
    """Refuses a checkpoint's own labels in another order: names are given, not moved."""
    asked = [label.casefold() for label in labels]
    own = [name.casefold() for name in _label_names(config)]
    if asked != own and sorted(asked) == sorted(own):
        raise DataError(
            f"checkpoint {checkpoint} has the labels {', '.join(_label_names(config))}, in this "
            f"order: give them so, not as {', '.join(labels)}"
        )


def _insist_on_choice(config: PretrainedConfig, checkpoint: str) -> None:
    """Refuses what gives no probabilities that sum to 1: an explanation is of their log-odds."""
    if len(_label_names(config)) < 2:
        raise DataError(
            f"checkpoint {checkpoint} has one output: give a classifier of two classes at least"
        )
    if config.problem_type == "multi_label_classification":
        raise DataError(
            f"checkpoint {checkpoint} may give a text several labels at once: give a function "
            "MODULE:NAME that returns the probabilities of not having and of having one of them"
        )


def _tokenizer_json(folder: str, checkpoint: str) -> str:
    path = Path(folder) / "tokenizer.json"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    from transformers import AutoTokenizer  # slow import, needed for hub ids only

    tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True)
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(f"{checkpoint} has no fast tokenizer, which word offsets need")
    return str(tokenizer.backend_tokenizer.to_str())


def state_digest(black_box: HuggingFaceBlackBox) -> str:
    """Returns a digest of what decides the black box's answers.

    Weights, tokenizer, windows, and the power of votes, which no weight shows.
    """
    digest = hashlib.sha256(black_box.encoder.to_json().encode())
    digest.update(f"{black_box.encoder.max_tokens},{black_box.encoder.overlap}".encode())
    for name, tensor in sorted(black_box.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    power = getattr(black_box.model.config, "vote_power", 1)
    if power != 1:
        digest.update(f"vote_power {power}".encode())
    return digest.hexdigest()
