"""What an explainer reads: states of the frozen black box, computed once where they fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from models.text import Window, bucket_length, pad_rows
from training.blackbox.huggingface import HuggingFaceBlackBox
from training.explainer.network import NetworkConfig, select_states
from training.runtime import progress

ROWS, TOKENS = 32, 4096  # of a batch that fills the memory, at most
BYTES = 4  # of a number: what is kept is what would be computed again


class States:
    """Gives the input of a network for rows of pieces.

    The black box is frozen, so its states of a text are the same in every epoch; computing them is
    most of the work of distilling. `keep` computes them once, in an order that follows from the
    texts alone, so that a run that was killed goes on with the very same numbers.
    """

    def __init__(self, black_box: HuggingFaceBlackBox, config: NetworkConfig) -> None:
        self._black_box = black_box
        self._config = config
        self._kept: dict[bytes, Tensor] = {}

    def keep(self, windows: Iterable[Window], *, most: float) -> bool:
        """Computes and keeps the states of all rows, if they fit.

        Args:
            windows: each row once or more.
            most: bytes to spend.

        Returns:
            Whether they fit; if not, they are computed whenever they are read.
        """
        rows = {window.input_ids.tobytes(): window for window in windows}
        pieces = sum(len(window.input_ids) for window in rows.values())
        if self._config.reads == "own" or pieces * self._config.input_width * BYTES > most:
            return False
        ordered = sorted(rows.values(), key=lambda each: (len(each.input_ids), [*each.input_ids]))
        batches = [*_batches(ordered)]
        for batch in progress(batches, total=len(batches), what="states of the black box"):
            length = bucket_length(len(batch[-1].input_ids))
            ids, mask = pad_rows(
                [window.input_ids for window in batch], length, self._black_box.encoder.pad_id
            )
            states = self._compute(torch.from_numpy(ids), torch.from_numpy(mask))
            for window, found in zip(batch, states, strict=True):
                own = found[: len(window.input_ids)].clone()  # a view would keep the whole batch
                self._kept[window.input_ids.tobytes()] = own
        return True

    def read(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Returns the input of the network.

        Args:
            ids: int64 [rows, tokens].
            mask: int64 [rows, tokens], 1 at pieces, which come before the pads.

        Returns:
            float32 [rows, tokens, input_width], of kept rows 0 at pads; or the ids for a network
            with embeddings of its own.
        """
        if self._config.reads == "own":
            return ids
        lengths = mask.sum(1).tolist()
        found = [
            self._kept.get(row[:length].numpy().tobytes())
            for row, length in zip(ids, lengths, strict=True)
        ]
        kept = [each for each in found if each is not None]
        if len(kept) < len(found):
            return self._compute(ids, mask)
        result = torch.zeros(*ids.shape, self._config.input_width)
        for row, states in enumerate(kept):
            result[row, : len(states)] = states
        return result

    def _compute(self, ids: Tensor, mask: Tensor) -> Tensor:
        with torch.no_grad(), self._black_box.autocast():
            states = self._black_box.hidden_states(ids, mask)
        # The student is small and its losses compare close scores: it computes in fp32, as served.
        return select_states(states, self._config).float()


def _batches(windows: Sequence[Window]) -> Iterator[list[Window]]:
    """Cuts rows in order of length into batches."""
    batch: list[Window] = []
    for window in windows:
        length = bucket_length(len(window.input_ids))
        if batch and (len(batch) == ROWS or (len(batch) + 1) * length > TOKENS):
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch
