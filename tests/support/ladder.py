"""The micro ladder of tests/training: one run after another, with compiled steps in common."""

import micro

from gdistill.training import assemble
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import storage

COMPILED = {}  # {stage: compiled train step} of all runs of the unchanged micro recipe


def run(workdir, stop=None, compiled=COMPILED, **sections):
  """Checks and trains the micro recipe with some sections changed; returns the recipe."""
  recipe = micro.recipe(**sections)
  micro.train(recipe, workdir, stop, compiled)
  return recipe


def digests(workdir):
  """Returns {round: digest of its parameters} of a finished run of the micro recipe."""
  plan = assemble.plan_of(micro.recipe())
  return {r.name: finished_rounds.params_digest(storage.path(workdir) / r.name) for r in plan}


def finished(workdir):
  """Returns the names of the finished rounds in a workdir, sorted."""
  return sorted(p.parent.name for p in workdir.glob('*/card.json'))


def times(workdir, pattern='**/*'):
  """Returns {path: time of its last change} of the files and folders in a workdir."""
  return {p: p.stat().st_mtime_ns for p in workdir.glob(pattern)}
