"""What goes over the wire: requests with their limits as types, answers as documentation.

Requests are strict (no conversions, no unknown fields). The limits are settings, so
`request_models` makes the two request models of one server; the classes here show their shape.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    create_model,
    model_validator,
)

from models.text import check_text
from service.batching.tickets import Wish
from service.errors import Fault, ProblemBody, describe
from service.settings import Settings

_MAX_LABEL_CHARS = 256
_MAX_ID_CHARS = 256
_MAX_FIELDS = 32


def _usable(text: str) -> str:
    check_text(text)
    return text


def _text(max_chars: int) -> Any:
    """The type of a text of limited length, in code points."""
    field = Field(min_length=1, max_length=max_chars, description="The text, in any language.")
    return Annotated[str, field, AfterValidator(_usable)]


Target = Annotated[
    str | None,
    Field(
        max_length=_MAX_LABEL_CHARS,
        description="The label to explain; the predicted one when absent.",
    ),
]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: object) -> object:
        # Each unknown field is an error of its own; a body full of them would take seconds.
        if isinstance(value, dict) and len(value) > _MAX_FIELDS:
            raise ValueError(f"has unknown fields; the fields are {', '.join(cls.model_fields)}")
        return value


class Options(_Strict):
    """What an answer holds besides the label."""

    explain: bool = Field(True, description="Compute the rationale; false answers the label only.")
    verify: bool = Field(
        False, description="Mask the rationale and keep only the rationale, and say what changed."
    )
    html: bool = Field(False, description="The text as escaped HTML with the rationale marked.")
    words: bool = Field(False, description="Every word with its weight, not the rationale only.")
    max_words: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        description="Most words the rationale is made of; 30 % of the text's words when absent.",
    )

    @model_validator(mode="after")
    def _needs_explain(self) -> "Options":
        asked = [name for name in ("verify", "html", "words") if getattr(self, name)]
        if asked and not self.explain:
            raise ValueError(f"asks for {', '.join(asked)}, which needs explain=true")
        return self


class QueryOptions(Options):
    """Options in a query, where every value is a string."""

    model_config = ConfigDict(strict=False)


class PredictRequest(Options):
    """One text."""

    text: str
    target: Target = None


class BatchItem(_Strict):
    """One text of a batch."""

    id: str | None = Field(
        None, max_length=_MAX_ID_CHARS, description="Your own name for the item, returned with it."
    )
    text: str
    target: Target = None


@dataclass(frozen=True, slots=True)
class BadItem:
    """An item that does not fit its schema; it fails alone."""

    id: str | None
    faults: list[Fault]


class BatchRequest(Options):
    """Several texts; each gets its own result or its own error."""

    items: list[BatchItem | BadItem]


class RequestModels(NamedTuple):
    """The request models of one server, with its limits."""

    predict: type[PredictRequest]
    batch: type[BatchRequest]
    item: type[BatchItem]


def request_models(settings: Settings) -> RequestModels:
    """The request models with the limits of `settings`."""
    text = (_text(settings.max_text_chars), ...)
    item = create_model("BatchItem", __base__=BatchItem, __doc__=BatchItem.__doc__, text=text)

    check = partial(read_item, item)
    checked = Annotated[Any, PlainValidator(check, json_schema_input_type=item)]
    items = Annotated[
        list[checked],
        Field(min_length=1, max_length=settings.max_batch_items, description="The texts."),
    ]
    return RequestModels(
        create_model(
            "PredictRequest", __base__=PredictRequest, __doc__=PredictRequest.__doc__, text=text
        ),
        create_model(
            "BatchRequest", __base__=BatchRequest, __doc__=BatchRequest.__doc__, items=(items, ...)
        ),
        item,
    )


def read_item(model: type[BatchItem], value: object) -> BatchItem | BadItem:
    """The item that a JSON value is, or what is wrong with it.

    Args:
        model: of an item, with the limits of this server.
        value: as parsed.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        faults = describe(error.errors(include_url=False), model.model_fields)
        return BadItem(_id_of(value), faults)


def wish(options: Options) -> Wish:
    """What the scheduler has to know of the options."""
    return Wish(options.explain, options.verify, options.max_words)


def _id_of(value: object) -> str | None:
    """The id of an item that is bad otherwise, when at least the id is good."""
    candidate = value.get("id") if isinstance(value, dict) else None
    if not isinstance(candidate, str) or len(candidate) > _MAX_ID_CHARS:
        return None
    return candidate if candidate.isprintable() else None  # a lone surrogate is not printable


class SpanBody(BaseModel):
    """A stretch of the text and what it contributes: `text == request.text[start:end]`."""

    start: int = Field(ge=0, description="First code point.")
    end: int = Field(ge=1, description="Code point after the last one.")
    text: str
    weight: float = Field(description="Log-odds of `target`; positive supports, negative opposes.")
    effect: Literal["supports", "opposes", "neutral"]
    strength: Literal["high", "low", "neutral"]


class Verification(BaseModel):
    """What happens to the target when the rationale's words are masked, or all others."""

    comprehensiveness: float = Field(description="Fall of its score without the rationale.")
    sufficiency: float = Field(description="Fall of its score with nothing but the rationale.")
    log_odds_drop: float = Field(description="Fall of its log-odds without the rationale.")


class ModelName(BaseModel):
    """Which bundle answered."""

    name: str
    digest: str = Field(description="sha256 over the bundle's manifest.")


class Prediction(BaseModel):
    """A label and the words that decided it."""

    label: str
    score: float = Field(ge=0, le=1, description="Calibrated probability of `label`.")
    scores: dict[str, float] = Field(description="Calibrated probability of every label.")
    rationale: list[SpanBody] = Field(description="The words that matter most, by position.")
    target: str = Field(description="The label that the weights speak of.")
    windows: int = Field(ge=1, description="Overlapping windows that the text was read in.")
    words: list[SpanBody] | None = Field(None, description="Every word; with words=true.")
    html: str | None = Field(None, description="Escaped HTML; with html=true.")
    verify: Verification | None = Field(None, description="With verify=true.")
    model: ModelName
    offset_unit: Literal["codepoint"]


class ItemOk(BaseModel):
    """An item that was answered."""

    index: int
    id: str | None = None
    status: Literal["ok"]
    result: Prediction


class ItemError(BaseModel):
    """An item that was not answered, and why; the others are not affected."""

    index: int
    id: str | None = None
    status: Literal["error"]
    error: ProblemBody


class BatchSummary(BaseModel):
    """How many items were answered."""

    ok: int
    failed: int


class BatchResponse(BaseModel):
    """One result for each item, in the order of the items."""

    results: list[ItemOk | ItemError]
    summary: BatchSummary


class ModelCard(BaseModel):
    """The loaded bundle: what it is, how it was made and how good it is."""

    name: str
    digest: str
    labels: list[str]
    schema_version: int
    max_tokens: int
    overlap: int
    temperature: float
    precision: str
    device: str = Field(description="Where it runs now.")
    provider: str = Field(description="ONNX Runtime's execution provider.")
    teacher: dict[str, Any]
    recipe: dict[str, Any]
    card: dict[str, Any] = Field(description="Metrics, data, licence notes, language.")
    times: dict[str, Any]
    versions: dict[str, Any]


class Models(BaseModel):
    """What this server has loaded."""

    models: list[ModelCard]


class Health(BaseModel):
    """A good state."""

    status: Literal["live", "ready"]
