"""Where pgmonkey 4.0 had its managers: see `pgmonkey.common`."""

from pgmonkey.common import make_modules

make_modules(__name__)
