"""`python -m service`: the server, with its settings from the environment."""

import sys

from service.app import main

sys.exit(main())
