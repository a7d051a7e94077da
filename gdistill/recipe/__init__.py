"""A run's settings: read from a config once, checked, and frozen.

settings.py defines the recipe: one dataclass for each section of a config, with the meaning of
every key; docs/config.md is made from it. reading.py turns a config into a recipe and back into
JSON. checks.py has every check that needs neither data nor devices. identity.py says which recipes
belong to the same run: digests, and the keys that may change between two starts.
These modules may use errors, and nothing else of the package.
"""
