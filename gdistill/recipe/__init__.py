"""The recipe: all settings of a run, read from a config, checked, and then immutable.

settings.py and evaluation_settings.py define every key of a config; docs/config.md is generated
from them. reading.py turns a config into a recipe, and a recipe into JSON. checks.py has the checks
that need neither data nor devices. identity.py decides whether two recipes belong to one run.
class_names.py compares, knows and finds names of classes; class_map.py reads the file data.classes.
Modules of gdistill/recipe import gdistill.errors, and nothing else of gdistill.
"""
