"""A Django project on a registry, as a user has one: for the tests beside it, and as programs."""
