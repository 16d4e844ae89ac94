"""Modules of pgmonkey 4.0: see `pgmonkey.common`."""
