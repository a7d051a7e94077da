"""Two of the configs that come with gdistill, and copies of them with other values."""

import copy

from gdistill.cli import config_file

DIGITS = config_file.load('configs/digits.py', [])
SD = config_file.load('configs/stable_diffusion.py', [])


def changed(base=DIGITS, **fields):
  """Returns a copy of a config in which `teacher__lr=1.0` has set teacher.lr."""
  config = copy.deepcopy(base)
  for key, value in fields.items():
    *sections, last = key.split('__')
    here = config
    for section in sections:
      here = here.setdefault(section, {})
    here[last] = value
  return config
