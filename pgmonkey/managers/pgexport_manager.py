"""A module of pgmonkey 4.0: see `pgmonkey.common`."""

from pgmonkey.common import older_names

__getattr__ = older_names(__name__)
