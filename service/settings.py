"""Every knob of the server, each also an environment variable with the prefix `L2E_`."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from models.device import DeviceName, shipped_bundle

Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]


class SettingsError(ValueError):
    """A setting that cannot be used; the message is one line that names it."""


class Settings(BaseSettings):
    """How one server process runs; the defaults suit a laptop."""

    model_config = SettingsConfigDict(
        env_prefix="L2E_", extra="forbid", frozen=True, validate_default=True
    )

    host: str = Field(
        "127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 for all of them."
    )
    port: int = Field(8000, ge=0, le=65_535, description="TCP port; 0 takes a free one.")
    device: DeviceName = Field(
        "auto",
        description="Where the model runs; `auto` takes CUDA or else the CPU, any other fails when "
        "it does not come up. `openvino-bf16` is faster and off by about 0.03 in a logit.",
    )
    bundle: Path = Field(
        default_factory=lambda given: shipped_bundle(given.get("device", "auto")),
        description="Directory of the bundle to serve; unset: the shipped one, in int8 on a "
        "processor with VNNI.",
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1_024,
        description="Threads of the model, and on a processor how many runs of it go on at a time; "
        "unset: what this process may use.",
    )
    max_text_chars: int = Field(
        1_000_000, ge=1, description="Longest text of one item, in code points (else 422)."
    )
    max_body_bytes: int = Field(
        8 * 1024 * 1024, ge=1, description="Largest request body, in bytes (else 413)."
    )
    max_batch_items: int = Field(
        256, ge=1, description="Most items of one POST /predict/batch (else 422)."
    )
    max_waiting: int = Field(
        256,
        ge=1,
        description="Most requests of which nothing has been computed yet (else 503 with "
        "Retry-After, as when the answer would come after `request_timeout`).",
    )
    max_waiting_tokens: int = Field(
        2_000_000,
        ge=1,
        description="Padded tokens that wait, beyond which nothing more is taken (else 503).",
    )
    max_batch_tokens: int | None = Field(
        None,
        ge=1,
        description="Most padded tokens in one run of the model; a longer row runs alone. By "
        "default as many as the device answers the quickest: 512 on a processor.",
    )
    request_timeout: Seconds = Field(
        60.0, gt=0, description="Seconds from the parsed request to its answer (else 504)."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="One line a request for people, or one JSON object."
    )
    traces: Literal["none", "otlp"] = Field(
        "none",
        description="Where a span of each request goes; `otlp` needs the extra `otel`, and the "
        "standard variables OTEL_* say which collector, which share and the rest.",
    )
    drain_delay: Seconds = Field(
        1.0,
        description="Seconds after SIGTERM in which the server is not ready but still answers, so "
        "that a gateway can notice.",
    )
    drain_timeout: Seconds = Field(
        30.0, description="Most seconds that running requests then get before they are cut off."
    )


def read_settings(**overrides: Any) -> Settings:
    """The settings from the environment, with `overrides` (from flags) on top.

    Args:
        **overrides: fields of `Settings`; None means not given.

    Raises:
        SettingsError: one line that names each bad setting.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))} (L2E_{str(fault['loc'][0]).upper()}): "
            f"{fault['msg'].lower()}"
            for fault in error.errors()
            if fault["type"] != "default_factory_not_called"  # for want of a good value elsewhere
        )
        raise SettingsError(f"bad setting: {faults}") from None
