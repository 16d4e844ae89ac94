"""The named databases of a directory: their handles, their reloads, and the API of 4.0."""
