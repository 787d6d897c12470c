"""Log lines, for people or for machines; in neither form is there ever a text."""

import json
import logging
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Literal

# The ids of the request's span where requests are traced, see `service.tracing`.
TRACE: ContextVar[Mapping[str, str] | None] = ContextVar("trace", default=None)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, ids, and a request's fields or the message."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            **(TRACE.get() or {}),
        }
        fields = getattr(record, "fields", None)
        return json.dumps(line | (fields or {"message": record.getMessage()}))


def set_up(form: Literal["text", "json"]) -> None:
    """Sends all lines to standard error in the given form; may be called again."""
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else plain)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
