"""`OTEL_PROPAGATORS`, checked before FastAPI is imported.

FastAPI imports the interfaces of OpenTelemetry where these are installed, traces or not, and they
load the propagators as they are imported: a name that they do not know is a traceback then.
"""

import os
from importlib.metadata import entry_points

from service.settings import SettingsError


def check_propagators() -> None:
    """Refuses what the import of `service.app` would fail on.

    Raises:
        SettingsError: one line that says which name is not known.
    """
    known = entry_points(group="opentelemetry_propagator").names
    named = os.environ.get("OTEL_PROPAGATORS")
    if not known or not named:  # not installed, or not asked for
        return
    for name in map(str.strip, named.split(",")):
        if name.lower() == "none":
            return
        if name not in known:
            choice = ", ".join(sorted({*known, "none"}))
            cure = f"{name!r} is not installed: choose of {choice}"
            raise SettingsError(f"bad setting: OTEL_PROPAGATORS: {cure}")
