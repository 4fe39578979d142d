"""``python -m vmm`` is the ``msrward`` command."""

import sys

from vmm.cli import main

sys.exit(main())
