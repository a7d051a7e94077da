"""Checks that labels mean the same classes in the data, in `initial` and in the finished rounds."""

from gdistill import errors
from gdistill.process import progress
from gdistill.rounds import classes
from gdistill.training import assemble
from gdistill.workdir import finished as finished_rounds


def check(run: assemble.Run, tell: bool = True) -> None:
  """Compares the classes of the data with those of `initial` and of the run's finished rounds.

  With `tell`, says in one line if `initial` has numbers only. Raises ConfigError if `initial` has
  other classes, and DataError if a finished round has. A network that reads text has no numbers of
  classes.
  """
  recipe = run.recipe
  if recipe.model.context == 'text':
    return
  if recipe.initial and finished_rounds.is_finished(recipe.initial):
    card = finished_rounds.read_card(recipe.initial)
    names = run.pictures[0].class_names
    note = classes.compare(names, card, f'initial={recipe.initial!r}', errors.ConfigError)
    if note and tell and not recipe.data.classes:
      progress.say(note)
  for r in run.plan if run.workdir is not None else ():
    folder = run.workdir / r.name
    if finished_rounds.is_finished(folder):
      card = finished_rounds.read_card(folder)
      classes.compare(run.pictures[0].class_names, card, f'the round {folder}', errors.DataError)
