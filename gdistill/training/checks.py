"""Checks that the devices, data and folders allow a run, before the run starts.

The checks neither compile a program nor write a file.
"""

import contextlib
import dataclasses
import math

import jax
import numpy as np

from gdistill import errors
from gdistill.data import source
from gdistill.devices import mesh as meshes
from gdistill.devices import sharding
from gdistill.frozen import encode
from gdistill.frozen import networks as frozen_networks
from gdistill.process import progress
from gdistill.recipe import identity
from gdistill.recipe import reading
from gdistill.recipe import settings as recipes
from gdistill.rounds import folder as folders
from gdistill.rounds import network as networks
from gdistill.training import assemble
from gdistill.training import class_checks
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import storage

# {key: default} of the sections `model` and `noise`: the card.json of an earlier version lacks the
# keys that are newer, and its network is one with the default values of these keys.
_DEFAULTS = {
  f'{section}.{field.name}': field.default
  for section, kind in (('model', recipes.Model), ('noise', recipes.Noise))
  for field in dataclasses.fields(kind)
  if field.default is not dataclasses.MISSING
}
_MOST_IN_V = 50.0  # largest 1 / alpha(t=1) without a warning: Stable Diffusion has 15, ADM 20,000


def everything(run: assemble.Run) -> None:
  """Checks the run's devices, data, folders and evaluation grid."""
  folders_and_grid(run)  # first: the rounds of another run's workdir must not meet these data
  mesh(run)
  data(run)
  _warn_of_eps(run)


def folders_and_grid(run: assemble.Run) -> None:
  """Checks the initial round, the evaluation grid and the workdir, without devices or data."""
  if run.recipe.initial:
    initial(run, finished_rounds.read_card(run.recipe.initial))
  grid(run)
  if run.workdir is not None:
    storage.check_writable('--workdir', run.workdir)
    if run.recipe.latent:
      encode.cache_folder(run.recipe.latents, run.workdir)
    same_run(run.config, run.workdir)


def mesh(run: assemble.Run) -> None:
  """Checks that batches and parameters can be split over the run's mesh."""
  meshes.check_compile_cache()
  found, recipe = run.mesh, run.recipe
  for section in recipe.sections:
    settings = recipe.settings(section)
    meshes.check_batch(section, settings.batch_size, settings.accumulation, found)
  sharding.check_fsdp(found, run.student_shapes)


def data(run: assemble.Run, plan: bool = False) -> None:
  """Checks that the data have the model's shape and classes, and enough examples for a batch.

  The classes are compared by name with those of the initial round and of finished rounds. `plan`
  says that only a plan is printed, so that nothing is encoded.
  """
  recipe = run.recipe
  frozen_networks.check_fits(run.frozen, recipe.latents, recipe.model)
  # First, because pictures passed over explain what the next checks find.
  told = _say_passed_over(run, plan)
  train_set, held_set = run.pictures
  class_checks.check(run)
  height, _, channels = run.picture_shape
  _check_classes(recipe, run.own_pictures[0], told)
  for name, mine, theirs in (
    ('image_size', height, train_set.shape[0]),
    ('image_channels', channels, train_set.shape[2]),
  ):
    if mine != theirs:
      raise errors.ConfigError(
        f'model.{name}={mine} does not fit the data set data.name={recipe.data.name!r}; '
        f'set model.{name}={theirs}'
      )
  largest = max(recipe.settings(section).batch_size for section in recipe.sections)
  if len(train_set) < largest or len(held_set) < 4:
    raise errors.DataError(
      f'data.held_out={recipe.data.held_out} leaves {len(train_set)} training and {len(held_set)} '
      f'held-out examples; a training batch needs {largest} and the metrics need 4; lower '
      'batch_size, change data.held_out or use more data'
    )


def _say_passed_over(run: assemble.Run, plan: bool) -> list[str]:
  """Prints what the readers of the pictures passed over; returns the lines.

  If the training pictures will be encoded, the encoding prints their notes.
  """
  train, held = run.own_pictures
  encodes = run.recipe.latent and not plan
  if encodes and run.workdir is not None:
    encodes = not all(finished_rounds.is_finished(run.workdir / r.name) for r in run.plan)
  later = source.notes(train) if encodes else ()
  lines = [line for line in source.notes(train, held) if line not in later]
  if lines and not jax.process_index():  # process_index starts the devices, which no plan needs
    for line in lines:
      progress.say(line)
  return lines


def _check_classes(recipe: recipes.Recipe, train: source.Source, told: list[str]) -> None:
  """Checks that the model has the classes of the data, and that every class has examples.

  `told` are the lines about files passed over that were printed, and are not repeated.
  """
  mine, theirs = recipe.model.num_classes, len(train.class_names)
  where = f'the data set data.name={recipe.data.name!r}'
  if mine != theirs:
    remedy = f'set model.num_classes={theirs}'
    over = source.notes(train)
    if over:
      new = '; '.join(line for line in over if line not in told)
      which = f' ({new})' if new else ', as said above'
      remedy = (
        f'correct the data first, because files were passed over{which}; only if these files '
        f'belong to no class, {remedy}'
      )
    raise errors.ConfigError(
      f'model.num_classes={mine} does not fit {where}, which has {theirs:,} '
      f'class{"es" if theirs > 1 else ""}; {remedy}'
    )
  source.check_classes(train, where)


def grid(run: assemble.Run) -> None:
  """Raises ConfigError if the evaluation grid has no (num_steps, w) of a student of the run."""
  trained = [r.num_steps for r in run.plan if r.stage == 'progressive']
  e, guidance = run.recipe.evaluation, run.recipe.guidance
  low, high = guidance.w_min, guidance.w_max
  if trained and not set(trained) & set(e.num_steps):
    raise errors.ConfigError(
      f'evaluation.num_steps={e.num_steps} contains none of the numbers of steps that the '
      f'students are trained for; add one of {trained}'
    )
  if trained and not any(low <= w <= high for w in e.ws):
    raise errors.ConfigError(
      f'evaluation.ws={e.ws} contains no w between guidance.w_min={low} and guidance.w_max={high}; '
      'add a w of this range'
    )


def initial(run: assemble.Run, card: dict) -> None:
  """Raises ConfigError unless the first stage can learn from the round with this card.json."""
  recipe = run.recipe
  where, first = f'initial={recipe.initial!r}', (*recipe.stages, 'encoder')[0]
  if first in ('progressive', 'encoder'):
    _initial_student(recipe, card, where, first)
  elif card['stage'] != 'teacher':
    raise errors.ConfigError(
      f'{where} is a round of stage {card["stage"]!r}, and stage {first!r} needs a teacher; '
      'set initial to the folder of a teacher round'
    )
  elif first == 'guidance' and folders.null_of(card) == 'none':
    raise errors.ConfigError(
      f'{where} has no null condition for guidance (p_uncond=0); train this teacher again with '
      'teacher.p_uncond above 0, or import it together with an unconditional network (--null)'
    )
  _same_networks(run, card, where, first)


def _initial_student(recipe: recipes.Recipe, card: dict, where: str, first: str) -> None:
  expected = recipe.progressive.start_steps
  if card['guided']:
    raise errors.ConfigError(
      f'{where} is a {card["stage"]} round that needs guidance for sampling, and stage {first!r} '
      "learns from a round of stage 'guidance'; begin stages with 'guidance' and set initial to a "
      'teacher round'
    )
  if not card['takes_w'] and not recipe.single_w:
    raise errors.ConfigError(
      f'{where} has no input for w; set guidance.w_min equal to '
      f'guidance.w_max={recipe.guidance.w_max}'
    )
  if card['takes_w'] and recipe.single_w:
    raise errors.ConfigError(
      f'{where} has an input for w, so guidance.w_min must be below guidance.w_max; set them to '
      f'{card["w_min"]} and {card["w_max"]}'
    )
  if card.get('clip_x_hat') and not recipe.progressive.clip_x_hat:
    raise errors.ConfigError(
      f'progressive.clip_x_hat=False, but {where} was trained with clip_x_hat=True and has '
      'learned nothing about x_hat beyond [-1, 1]; set progressive.clip_x_hat=True'
    )
  if first == 'progressive' and card['stage'] == 'encoder':
    raise errors.ConfigError(
      f"{where} is a round of the encoder, from which stage 'progressive' cannot learn; set "
      "initial to a round of stage 'guidance', or set stages=() with encoder=True"
    )
  if recipe.encoder and card['num_steps'] and card['stage'] != 'encoder':
    raise errors.ConfigError(
      f'{where} is a student for sampling in {card["num_steps"]} steps, and the encoder learns '
      "from a round of stage 'guidance'; set initial to such a round, or set encoder=False"
    )
  if card['num_steps'] and card['num_steps'] != expected:
    raise errors.ConfigError(
      f'{where} is a student of {card["num_steps"]} steps; '
      f'set progressive.start_steps={card["num_steps"]} (now {expected})'
    )
  sampler = 'deterministic' if first == 'encoder' else recipe.progressive.sampler
  if card['num_steps'] and card['sampler'] != sampler:
    raise errors.ConfigError(
      f'{where} was distilled for the {card["sampler"]} sampler; '
      f'set progressive.sampler={card["sampler"]!r}'
    )
  low, high = recipe.guidance.w_min, recipe.guidance.w_max
  if (card['w_min'], card['w_max']) != (low, high):
    raise errors.ConfigError(
      f'guidance.w_min={low}, guidance.w_max={high} differ from the range of {where}; '
      f'set guidance.w_min={card["w_min"]}, guidance.w_max={card["w_max"]}'
    )


def _same_networks(run: assemble.Run, card: dict, where: str, first: str) -> None:
  """Raises ConfigError if the networks in the initial round's card.json differ from the config."""
  recipe = run.recipe
  theirs = card.get('latents') if recipe.latent else None
  for name, mine in run.frozen.names().items() if theirs else ():
    if (
      name == 'text' and run.frozen.text and theirs[name] == run.frozen.text.earlier_digest != mine
    ):
      raise errors.ConfigError(
        f'latents.text={recipe.latents.text} has tokens that were added to its tokenizer, and '
        f'{where} was made by a version of gdistill that split such tokens into bytes; import or '
        'train that round again'
      )
    if theirs[name] != mine:
      raise errors.ConfigError(
        f'latents.{name} gives {mine!r}, and {where} was trained with {theirs[name]!r}; use the '
        'autoencoder, text encoder and text_length of that round'
      )
  theirs = _DEFAULTS | identity.flat({'model': card['model'], 'noise': card['noise']})
  mine = identity.flat(reading.to_dict(recipe))
  free = {'model.dropout', 'model.dtype', *(('model.predict',) if first == 'teacher' else ())}
  if first == 'teacher' and not card['model'].get('extra_channels', 0):
    free.add('model.extra_channels')  # a teacher may add channels for a mask
  if not card['takes_w']:  # the round has no input for w, so settings of that input may differ
    free |= {'model.w_features', 'model.w_scale'}
  for key, value in theirs.items():
    if key not in free and mine.get(key) != value:
      raise errors.ConfigError(
        f'{key}={mine.get(key)!r} differs from {where}; set {key}={value!r} as in that round'
      )


def same_run(config: dict, workdir: storage.epath.Path) -> None:
  """Raises ConfigError if `config` changes a key of the workdir's run that must not change."""
  file = workdir / 'config.json'
  if storage.exists(file):
    old = storage.read_json(file)
    if not isinstance(old, dict):
      raise errors.CheckpointError(
        f'{file} is damaged: it holds no config; restore the file from a copy'
      )
    with contextlib.suppress(errors.ConfigError):
      old = reading.to_dict(reading.unchecked(old))  # adds defaults of keys newer than the file
    changed = identity.differences(old, config)
    if changed:
      raise errors.ConfigError(
        f'--workdir={workdir} holds a run with another config ({_some(changed)}); '
        'choose another workdir, or set these keys back to the old values'
      )


def _some(items: list[str], most: int = 12) -> str:
  more = f'; and {len(items) - most} more' if len(items) > most else ''
  return '; '.join(items[:most]) + more


def _warn_of_eps(run: assemble.Run) -> None:
  """Warns if a student that predicts eps is trained where 1 / alpha is large.

  A large 1 / alpha amplifies errors of eps, because v = (eps - sigma z) / alpha.
  """
  recipe = run.recipe
  weights = {s: recipe.settings(s).weight for s in recipe.sections if s != 'teacher'}
  stage = next((s for s, weight in weights.items() if weight != 'snr'), None)
  times = math.sqrt(1.0 + math.exp(-float(networks.noise(recipe.noise)(np.ones(1, np.float32))[0])))
  if recipe.model.predict == 'eps' and stage and times > _MOST_IN_V:
    progress.say(
      f"warning: with model.predict='eps' an error at t = 1 counts {times:,.0f} times "
      f"in v, under {stage}.weight={weights[stage]!r}; set {stage}.weight='snr', or "
      "first train the teacher to predict v: begin stages with 'teacher', model.predict='v'"
    )
