"""Run the command line: `python -m pgmonkey`."""

from __future__ import annotations

from pgmonkey.cli.app import main

main()
