"""Writes a published teacher, or a round that gdistill exported, as a finished round."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from gdistill import errors
from gdistill.convert import autoencoder as autoencoders
from gdistill.convert import text as texts
from gdistill.frozen import networks as frozen_networks
from gdistill.published import exporting
from gdistill.published import source_files
from gdistill.published import teacher
from gdistill.published import teachers
from gdistill.recipe import settings as recipes
from gdistill.rounds import classes
from gdistill.training import card as cards
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import storage

TINY = 'autoencoder_tiny'  # folder of the tiny autoencoder that gdistill sample --decoder=tiny uses


def run(source: str, out: storage.epath.Path, *, tiny: str = '', **given: Any) -> dict[str, Any]:
  """Writes the network at `source` to `out` as a finished round; returns the content of card.json.

  `given` holds the other keyword arguments of teachers.read. `tiny` is the path of a tiny
  autoencoder to store with the round, or '' for no tiny autoencoder. If `source` is a folder that
  gdistill exported, the exported round is restored. Raises ConfigError if the arguments do not fit
  the network, and DataError if a file is missing or damaged.
  """
  if exporting.is_export(pathlib.Path(source)):
    surplus = [name for name, value in {**given, 'tiny': tiny}.items() if value]
    if surplus:
      raise errors.ConfigError(
        f'--source={source} was exported by gdistill and needs no --{surplus[0]}; leave '
        f'--{surplus[0]} out'
      )
    return _import_export(pathlib.Path(source), out)
  small = autoencoders.read(tiny) if tiny else None
  found = teachers.read(source, **given)
  if small is not None:
    _check_tiny(small, found, tiny)
  if found.text is not None:
    texts.write(os.fspath(out), found.text)
  if found.autoencoder is not None:
    autoencoders.write(os.fspath(out / frozen_networks.AUTOENCODER), found.autoencoder)
  if small is not None:
    autoencoders.write(os.fspath(out / TINY), small)
  if found.null_params is not None:
    finished_rounds.finish(out / 'null', found.null_params, {'stage': 'null'})
  return finished_rounds.finish(out, found.params, _card(found, _class_names(found, source)))


def _import_export(source: pathlib.Path, out: storage.epath.Path) -> dict[str, Any]:
  """Writes the round in the exported folder `source` to `out`; returns the content of card.json.

  Raises DataError if the weights in `source` were changed after the export.
  """
  card, params, autoencoder, text = exporting.read(source)
  if text is not None:
    texts.write(os.fspath(out), text)
  if autoencoder is not None:
    autoencoders.write(os.fspath(out / frozen_networks.AUTOENCODER), autoencoder)
  wanted = card.pop('params_digest', '')
  done = finished_rounds.finish(out, params, card)
  if done['params_digest'] != wanted:
    raise errors.DataError(
      f'--source={source} holds other weights than it was exported with, so files were changed; '
      'export the round again with gdistill export'
    )
  return done


def _check_tiny(small: autoencoders.Autoencoder, found: teacher.Teacher, tiny: str) -> None:
  """Raises ConfigError if the tiny autoencoder `small` cannot decode the latents of the teacher.

  The tiny autoencoder must have as many latent channels as the teacher's own autoencoder, and the
  same ratio of the image's side to the latents' side. Raises DataError if a weight of the tiny
  autoencoder is not finite.
  """
  big = found.autoencoder
  if big is None:
    raise errors.ConfigError(
      f'--tiny={tiny} decodes latents, and the network of kind {found.kind} draws pixels; leave '
      '--tiny out'
    )
  source_files.check_finite(f'--tiny={tiny}', autoencoders.state_from(small.net, small.params))
  if (small.factor, small.latent_channels) != (big.factor, big.latent_channels):
    raise errors.ConfigError(
      f'--tiny={tiny} makes latents of {small.latent_channels} channels at 1/{small.factor} of the '
      f"image's side, and the teacher's autoencoder of {big.latent_channels} channels at "
      f'1/{big.factor}; give as --tiny a tiny autoencoder of {big.latent_channels} channels at '
      f'1/{big.factor}'
    )


def _class_names(found: teacher.Teacher, source: str) -> tuple[str, ...]:
  """Returns the names of the network's classes by number, or () if nobody states them.

  A folder of diffusers may state them as id2label in model_index.json; networks of ImageNet have
  the names of rounds.classes.of_published.
  """
  count, index = found.settings.num_classes, pathlib.Path(source) / 'model_index.json'
  if index.is_file():
    stated = source_files.read_json(index).get('id2label')
    names = [stated.get(str(k)) for k in range(count)] if isinstance(stated, dict) else [None]
    if all(isinstance(name, str) and name for name in names):
      return tuple(names)
  return classes.of_published(found.kind, count)


def _card(found: teacher.Teacher, class_names: Sequence[str]) -> dict[str, Any]:
  """Returns the content of card.json (the record of a finished round) for an imported teacher.

  `class_names` are the names of the classes, or () if the network has only numbers.
  """
  text = found.text
  numbers_only = (str(k) for k in range(found.settings.num_classes))
  return {
    'stage': 'teacher',
    'num_steps': 0,
    'sampler': 'any',
    'takes_w': False,
    'guided': True,
    'null': found.null,
    'p_uncond': None,  # unknown: published files do not state the rate of label dropout
    'null_label': -1,
    'w_min': 0.0,
    'w_max': 0.0,
    'clip_x_hat': False,
    'predict': found.settings.predict,
    'model': dataclasses.asdict(found.settings),
    'noise': dataclasses.asdict(found.noise),
    'class_names': [] if text else list(class_names or numbers_only),
    'latents': found.autoencoder
    and {
      'autoencoder': frozen_networks.encoder_digest(found.autoencoder),
      'text': text.digest if text else '',
      'text_length': text.length if text else 0,
      'template': '',
    },
    'imported': {'kind': found.kind, 'null': found.null, **found.about},
    'teacher': '',
    'licence': found.about['licence'],
    'parameters': sum(a.size for a in jax.tree.leaves(found.params)),
    'config': {'mesh': {'cpu_devices': recipes.Mesh(1, 1).cpu_devices}},
    'versions': cards.versions(),
  }
