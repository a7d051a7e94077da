"""The recipe: all settings of a run, read from a config, checked, and then immutable.

settings.py defines the recipe: one dataclass for each section of a config, with the meaning of
every key; docs/config.md is generated from settings.py. reading.py turns a config into a recipe,
and a recipe into JSON. checks.py has every check that needs neither data nor devices. identity.py
decides whether two recipes belong to the same run, and lists the keys that may change on resume.
evaluation_settings.py has the dataclass of the section `evaluation`. class_names.py compares lists
of class names, knows those of ImageNet, and finds the class that a text means. class_map.py reads
the file `data.classes`, which says which class of the teacher each class of the data is.
Modules of gdistill/recipe import gdistill.errors, and nothing else of gdistill.
"""
