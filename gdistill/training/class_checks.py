"""Checks that labels mean the same classes in the data, in `initial` and in the finished rounds."""

from gdistill import errors
from gdistill.process import progress
from gdistill.recipe import class_names
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
    if tell:
      _tell_of_identifiers(run)
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


def _tell_of_identifiers(run: assemble.Run) -> None:
  """Says in one line if captions are made from names such as n01440764, ImageNet's identifiers."""
  names = run.own_pictures[0].class_names
  odd = [name for name in names if class_names.words(name) != name]
  if odd:
    caption = run.latents.template.replace('{}', odd[0])
    progress.say(
      f'{len(odd):,} classes of the data are named by identifiers of ImageNet, so that a caption '
      f'is {caption!r}; for words, rename the folders, such as {odd[0]} to '
      f'{class_names.words(odd[0]).partition(",")[0]!r}'
    )
