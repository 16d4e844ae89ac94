"""From files to validated settings, or to all that is wrong with them."""
