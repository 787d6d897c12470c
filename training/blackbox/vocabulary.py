"""Word-level tokenizers and word vectors, for classifiers without a pretrained encoder."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import PCA
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import NFC, Lowercase
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import Split
from transformers import AutoModel, AutoTokenizer

from models.text import FloatArray, pad_rows, plan_batches, split_words
from training.data.example import DataError
from training.data.load import package_path
from training.runtime import progress

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[MASK]")  # ids 0, 1, 2
TOKEN_BUDGET = 4096

# As `models.text` splits, in the dialect of the tokenizers library: one word, one piece.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}"
_INNER = rf"[[\p{{L}}\p{{M}}\p{{N}}]&&[^{_UNSPACED}]]"
_NORMALIZER = Normalizers([NFC(), Lowercase()])
_WORD = Regex(rf"[{_UNSPACED}]\p{{M}}*|{_INNER}+(?:['’\-]{_INNER}+)*|[^\s\x1c-\x1f]")


def count_words(texts: Sequence[str]) -> Counter[str]:
    """Counts the words of texts, as the tokenizer sees them."""
    # Python's lower() would follow the rule of the final sigma, the tokenizer's does not.
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_NORMALIZER.normalize_str(word.text) for word in split_words(text))
    return counts


def most_frequent(counts: Counter[str], size: int, *, skip: int = 0, least: int = 1) -> list[str]:
    """Returns words by falling frequency, equally frequent ones in alphabetical order.

    Args:
        counts: of the training texts.
        size: most words returned, after skipping.
        skip: how many of the most frequent are left out.
        least: how often a word must occur.
    """
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return [word for word in ranked[skip : skip + size] if counts[word] >= least]


def word_tokenizer(words: Sequence[str]) -> Tokenizer:
    """Returns a tokenizer of one piece a word; others become `[UNK]`.

    Args:
        words: lower-cased and different; the first has the id after the special tokens.
    """
    vocabulary = {word: row for row, word in enumerate((*SPECIAL_TOKENS, *words))}
    unknown = SPECIAL_TOKENS[1]
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=unknown))
    tokenizer.normalizer = _NORMALIZER
    tokenizer.pre_tokenizer = Split(_WORD, behavior="removed", invert=True)
    # Not registered as special, or the tokenizer would find "[MASK]" in what somebody has written.
    return tokenizer


def word_vectors(words: Sequence[str], source: str, size: int) -> FloatArray:
    """Returns vectors of words, float64 [words, size], of unit variance over all entries.

    Args:
        words: lower-cased.
        source: a text file of a word and its numbers on each line, as GloVe's, or an encoder
            (`package:MODULE/FOLDER`, a folder or a hub id), from which vectors are distilled.
        size: of the vectors; a file must have this size.

    Raises:
        DataError: when the file has other vectors.
    """
    if Path(source).is_file():
        vectors = _read_vectors(words, Path(source), size)
    else:
        vectors = _distil_vectors(words, source, size)
    scaled: FloatArray = vectors / max(vectors.std(), 1e-12)
    return scaled


def _read_vectors(words: Sequence[str], path: Path, size: int) -> FloatArray:
    """Reads vectors; a word that the file lacks gets zeros."""
    rows = {word: row for row, word in enumerate(words)}
    vectors = np.zeros((len(words), size))
    found = 0
    wrong = ""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                word, *numbers = line.rstrip().split(" ")
                header = number == 1 and len(numbers) == 1  # word2vec's count of words and size
                # Some files have words with blanks, which are none of ours.
                blanks = len(numbers) > size and not _is_number(numbers[0])
                if header or blanks or word not in rows:
                    continue
                if len(numbers) != size or not all(map(_is_number, numbers)):
                    wrong = f"{path}:{number} has not {size} numbers after its word"
                    break
                vectors[rows[word]] = np.array(numbers, dtype=np.float64)
                found += 1
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8: give word vectors as text, or convert it") from None
    if wrong:
        raise DataError(f"{wrong}: set vector_size to that of the file")
    if not found:
        raise DataError(f"{path} has none of the {len(words)} words: give a file of word vectors")
    return vectors


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _distil_vectors(words: Sequence[str], encoder: str, size: int) -> FloatArray:
    """Encodes each word by itself and keeps the principal components.

    As model2vec makes static vectors of a sentence encoder, but it also shrinks frequent words,
    which is good for sums over a text and would hide a `not` from a convolution.
    """
    where = encoder
    if encoder.startswith("package:"):
        where = str(package_path(encoder.removeprefix("package:")))
    try:
        tokenizer = AutoTokenizer.from_pretrained(where)
        model = AutoModel.from_pretrained(where, dtype=torch.float32).eval()
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"no word vectors or encoder at {encoder}: {reason}") from None
    rows = [np.array(tokenizer(word)["input_ids"], dtype=np.int64) for word in words]
    states = np.zeros((len(words), model.config.hidden_size))
    batches = plan_batches([len(row) for row in rows], TOKEN_BUDGET)
    for batch in progress(batches, total=len(batches), done=0, what="word vectors"):
        longest = max(len(rows[row]) for row in batch)
        ids, mask = pad_rows([rows[row] for row in batch], longest, tokenizer.pad_token_id)
        with torch.inference_mode():
            found = (
                model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
                .last_hidden_state.double()
                .numpy()
            )
        states[batch] = (found * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    if size > min(states.shape):
        raise DataError(
            f"{encoder} gives {len(words)} words vectors of at most {min(states.shape)} numbers, "
            f"not {size}: choose a smaller vector_size"
        )
    vectors: FloatArray = PCA(size, svd_solver="full").fit_transform(states)
    return vectors
