"""Checks that labels mean the same classes in the data, in `initial` and in the finished rounds."""

import jax

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
    if tell and not jax.process_index():
      _tell_of_identifiers(run)
    return
  names = run.pictures[0].class_names
  if recipe.initial and finished_rounds.is_finished(recipe.initial):
    card = finished_rounds.read_card(recipe.initial)
    where = f'initial={recipe.initial!r}'
    known = classes.names_of(card)
    # For a teacher of numbers only, a map onto numbers says more than numbers as names of folders.
    if (known or not recipe.data.classes) and (odd := classes.compare(names, card)):
      raise errors.ConfigError(
        f'{where} has other classes than the data: {odd}; a label would teach another class. Give '
        'data with the same names in the same order, or a file data.classes=FILE with a line "name '
        f'of the data = name of the round" for each class; {class_names.PAGE}'
      )
    unknown = not known and not all(n.isdigit() for n in names)
    told = tell and not jax.process_index()
    if told and unknown and not recipe.data.classes:
      progress.say(
        f'{where} has {len(names):,} classes by number only, so their names cannot be compared: '
        f'the classes of the data get these numbers: {class_names.listed(names)}; if that is '
        f'another order, give data.classes=FILE; {class_names.PAGE}'
      )
  for r in run.plan if run.workdir is not None else ():
    folder = run.workdir / r.name
    there = finished_rounds.is_finished(folder)
    if there and (odd := classes.compare(names, finished_rounds.read_card(folder))):
      raise errors.DataError(
        f'the round {folder} has other classes than the data: {odd}; restore the data that the '
        'run began with, or choose another workdir'
      )


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
