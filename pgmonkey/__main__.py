"""Run the command line: `python -m pgmonkey`."""

from __future__ import annotations

from pgmonkey.cli import main

main()
