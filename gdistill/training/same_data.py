"""Checks that a run's data are those that the run began with, by fingerprints in its ledger."""

from typing import Any

import jax

from gdistill import errors
from gdistill.data import source
from gdistill.process import progress
from gdistill.recipe import class_names
from gdistill.training import assemble
from gdistill.workdir import ledger
from gdistill.workdir import storage

# In the reasons of data/earlier.py that another version of gdistill does not share.
_EARLIER = 'earlier versions of gdistill'


def check(workdir: storage.epath.Path, examples: Any, pictures: source.Source) -> None:
  """Raises DataError unless the examples have the fingerprint that the run began with.

  The first call for a workdir records the fingerprints of the examples and of the training pictures
  `pictures`, which have the data's own labels.
  """
  told = _first_data(workdir)
  names = list(examples.class_names)
  if told is None:
    _record(
      workdir, 'data', examples=len(examples), fingerprint=examples.fingerprint,
      class_names=names, pictures=pictures.fingerprint,
    )  # fmt: skip
  elif told.get('fingerprint') != examples.fingerprint:
    before = told.get('class_names', names)  # older versions recorded no names
    changed = _why(told, pictures)
    odd = class_names.difference(names, before, ('the data now', 'the data at first'))
    raise errors.DataError(
      f'the training data are not those this run began with: now {len(examples)} examples with '
      f'fingerprint {examples.fingerprint}, at first {told.get("examples")} with '
      f'{told.get("fingerprint")}{"; classes: " + odd if odd else ""}'
      f'{": " + changed if changed else ""}; {_remedy(changed)}'
    )


def check_before_encoding(run: assemble.Run) -> None:
  """Raises DataError if an earlier version began a latent run on pictures that it read otherwise.

  The error of the cache would advise to remove the latents, and `check` would refuse new ones.
  """
  told = _first_data(run.workdir)
  if told is not None and _why(told, run.own_pictures[0]):
    check_for_evaluation(run)


def check_for_evaluation(run: assemble.Run) -> None:
  """Raises DataError unless a finished run has the training pictures that it began with.

  Without this check, a report would compare with pictures that the run was not trained on. A
  latent run whose ledger has no fingerprint of pictures is compared with its cache of latents.
  """
  told = _first_data(run.workdir)
  if told is None:
    return
  own = run.own_pictures[0]
  if run.recipe.latent:
    first, now = told.get('pictures') or run.recorded_pictures(own), own.fingerprint
  else:
    first, now = told.get('fingerprint'), run.pictures[0].fingerprint
  if first and first != now:
    changed = _why(told, own)
    raise errors.DataError(
      f'the training pictures are not those this run was trained on: now {len(own)} pictures with '
      f'fingerprint {now}, at first {first}{": " + changed if changed else ""}; {_remedy(changed)}'
    )


def record_samples(workdir: storage.epath.Path, *pictures: source.Source) -> None:
  """Records fingerprints by samples of bytes if an earlier version of gdistill began the run.

  `pictures` are the training set and the held-out set. The next start compares the fingerprints,
  and so need not read the pictures.
  """
  if pictures[0].sampled and not any(
    e['event'] == assemble.SAMPLED for e in ledger.ledger(workdir)
  ):
    _record(workdir, assemble.SAMPLED, fingerprints=[one.sampled for one in pictures])
    progress.say(
      f'an earlier version of gdistill began this run: its {len(pictures[0]):,} pictures are read '
      'as before, and from now on are recognised by their bytes too'
    )


def _why(told: dict[str, Any], pictures: source.Source) -> str:
  """Returns what earlier versions read otherwise, or '' if no earlier version recorded `told`."""
  return '' if 'class_names' in told else pictures.changed


def _remedy(changed: str) -> str:
  earlier = ', use the version of gdistill that began this run,' if _EARLIER in changed else ''
  return f'restore the first data{earlier} or choose another workdir'


def _first_data(workdir: storage.epath.Path) -> dict[str, Any] | None:
  """Returns the ledger's entry about the data that the run began with, or None."""
  return next((e for e in ledger.ledger(workdir) if e['event'] == 'data'), None)


def _record(workdir: storage.epath.Path, event: str, **fields: Any) -> None:
  """Adds an entry to the workdir's ledger; only process 0 writes."""
  if jax.process_index() == 0:
    ledger.record(workdir, event, **fields)
