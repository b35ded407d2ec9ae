# SPDX-License-Identifier: Apache-2.0
"""``python -m vla_checkpoint``."""

import sys

from vla_checkpoint.cli import main

sys.exit(main())
