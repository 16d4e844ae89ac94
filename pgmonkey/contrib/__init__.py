"""Frameworks on a registry, one module each. Only who uses a framework imports its module."""
