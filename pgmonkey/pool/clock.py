"""The clock for ages and pauses: monotonic, and it goes on while the machine is suspended."""

from __future__ import annotations

import time
from functools import partial
from typing import Final

#: Linux stops `time.monotonic` while it is suspended, but not this clock. A checkout reads it with
#: `clock_gettime`, which costs what `time.monotonic` costs.
CLOCK: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

#: Return its seconds.
monotonic = partial(time.clock_gettime, CLOCK)
