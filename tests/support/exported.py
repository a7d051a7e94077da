"""Finished rounds exported for diffusers."""

import shutil

from gdistill.published import exporting
from gdistill.rounds import folder as folders
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import storage


def with_card(folder, tmp_path, **changes):
  """A copy of the round whose card has these changes."""
  other = tmp_path / f'{folder.name}_again'
  shutil.copytree(folder, other, ignore=shutil.ignore_patterns('params', 'card.json'))
  found = folders.read_folder(folder)
  card = {k: v for k, v in found.card.items() if k != 'params_digest'}
  finished_rounds.finish(storage.path(other), found.params, {**card, **changes})
  return folders.read_folder(other)


def export(folder, tmp_path, **given):
  """Returns (the exported folder, notes)."""
  notes = exporting.run(folder, tmp_path / 'out', **given)
  return tmp_path / 'out', notes
