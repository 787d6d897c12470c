"""`python -m service`: the server, with its settings from the environment."""

import logging
import sys

from service import logs
from service.propagators import check_propagators
from service.settings import SettingsError


def main() -> int:
    """Serves until SIGTERM or Ctrl-C; returns the exit status, see `service.app.main`."""
    logs.set_up("text")
    try:
        check_propagators()
    except SettingsError as error:
        logging.getLogger("l2e.service").error("%s", error)
        return 2
    from service.app import main as serve  # noqa: PLC0415 - fails on what was just checked

    return serve()


sys.exit(main())
