"""Where pgmonkey 4.0 had its managers: see `pgmonkey.common`."""

import pgmonkey.common as _  # noqa: F401 - makes the modules below this one
