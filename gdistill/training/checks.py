"""Whether a recipe can run here: devices, data, folders. Compiles nothing, writes nothing."""

import contextlib
import math

import numpy as np
from jax.sharding import Mesh

from gdistill import errors
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
from gdistill.rounds import plan as plans
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import storage

_MOST_IN_V = 50.0  # Stable Diffusion's schedule has 15 at its end, ADM's 20,000


def everything(recipe: recipes.Recipe, workdir: storage.epath.Path | None) -> Mesh:
  """Every check that needs devices, data's shape or folders; writes nothing, compiles nothing."""
  found = mesh(recipe)
  data(recipe)
  rest(recipe, workdir)
  return found


def rest(recipe: recipes.Recipe, workdir: storage.epath.Path | None) -> None:
  """What needs neither devices nor data."""
  if recipe.initial:
    initial(recipe, finished_rounds.read_card(recipe.initial))
  grid(recipe)
  if workdir is not None:
    storage.check_writable('--workdir', workdir)
    if recipe.latent:
      encode.cache(recipe, workdir)
    same_run(recipe, workdir)


def mesh(recipe: recipes.Recipe, devices: int | None = None) -> Mesh:
  """The mesh, of the devices there are or of so many that need not exist: batches and parameters
  split over it.
  """
  meshes.check_compile_cache()
  found = meshes.make_mesh(recipe.mesh.data, recipe.mesh.fsdp, recipe.mesh.slices, devices)
  for section in recipe.sections:
    settings = recipe.settings(section)
    meshes.check_batch(section, settings.batch_size, settings.accumulation, found)
  net = networks.of_recipe(recipe, recipe.takes_w)
  sharding.check_fsdp(found, networks.initial_shapes(net, recipe.model))
  return found


def data(recipe: recipes.Recipe) -> None:
  """Whether there are enough examples, of the model's shape and classes."""
  encode.check(recipe)
  train_set, held_set = encode.pictures(recipe)
  height, _, channels = encode.pixel_shape(recipe)
  for name, mine, theirs in (
    ('num_classes', recipe.model.num_classes, len(train_set.class_names)),
    ('image_size', height, train_set.shape[0]),
    ('image_channels', channels, train_set.shape[2]),
  ):
    if mine != theirs:
      raise errors.ConfigError(
        f'model.{name}={mine} is not what data.name={recipe.data.name!r} has; set it to {theirs}'
      )
  largest = max(recipe.settings(section).batch_size for section in recipe.sections)
  if len(train_set) < largest or len(held_set) < 4:
    raise errors.DataError(
      f'data.held_out={recipe.data.held_out} leaves {len(train_set)} training and {len(held_set)} '
      f'held-out examples; a batch needs {largest}, the figures need 4'
    )


def grid(recipe: recipes.Recipe) -> None:
  """A grid without a single student in it would be found out only after the training."""
  trained = [r.num_steps for r in plans.plan(recipe) if r.stage == 'progressive']
  e, low, high = recipe.evaluation, recipe.guidance.w_min, recipe.guidance.w_max
  if trained and not set(trained) & set(e.num_steps):
    raise errors.ConfigError(
      f'evaluation.num_steps={e.num_steps} has none of the steps that get a round: {trained}'
    )
  if trained and not any(low <= w <= high for w in e.ws):
    raise errors.ConfigError(
      f'evaluation.ws={e.ws} has none between guidance.w_min={low} and guidance.w_max={high}'
    )


def initial(recipe: recipes.Recipe, card: dict) -> None:
  """Whether a finished round may be what this recipe's first stage learns from."""
  where, first = f'initial={recipe.initial!r}', (*recipe.stages, 'encoder')[0]
  if first in ('progressive', 'encoder'):
    _initial_student(recipe, card, where, first)
  elif card['stage'] != 'teacher':
    raise errors.ConfigError(f'{where} is a round of {card["stage"]}; {first} needs a teacher')
  elif first == 'guidance' and folders.null_of(card) == 'none':
    raise errors.ConfigError(
      f'{where} has no null condition to be guided by (p_uncond=0); train the teacher with label '
      'dropout, or import it with an unconditional network beside it (--null)'
    )
  _same_networks(recipe, card, where, first)


def _initial_student(recipe: recipes.Recipe, card: dict, where: str, first: str) -> None:
  expected = recipe.progressive.start_steps
  if card['guided']:
    raise errors.ConfigError(
      f'{where} is a {card["stage"]} round that is guided when it is sampled, not a student of '
      'guidance; begin stages with guidance, from a teacher'
    )
  if not card['takes_w'] and not recipe.single_w:
    raise errors.ConfigError(
      f'{where} takes no w; set guidance.w_min equal to guidance.w_max={recipe.guidance.w_max}'
    )
  if card['takes_w'] and recipe.single_w:
    raise errors.ConfigError(f'{where} takes w; guidance.w_min must be below guidance.w_max')
  if card.get('clip_x_hat') and not recipe.progressive.clip_x_hat:
    raise errors.ConfigError(
      f'progressive.clip_x_hat=False, but {where} was trained with clip_x_hat=True and says '
      'nothing of use beyond the edges; set it to True'
    )
  if first == 'progressive' and card['stage'] == 'encoder':
    raise errors.ConfigError(
      f'{where} is an encoder, which no decoder learns from; name a student of stage one, or set '
      'stages=() with encoder=True to train its ladder on'
    )
  if recipe.encoder and card['num_steps'] and card['stage'] != 'encoder':
    raise errors.ConfigError(
      f'{where} is a student that draws in {card["num_steps"]} steps, and an encoder learns from '
      'one of stage one; name that, or set encoder=False'
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
      f'guidance.w_min={low}, guidance.w_max={high} differ from what {where} was trained for: '
      f'{card["w_min"]} to {card["w_max"]}'
    )


def _same_networks(recipe: recipes.Recipe, card: dict, where: str, first: str) -> None:
  """The frozen networks and the trained one are those of the config, but for what may be built."""
  theirs = card.get('latents') if recipe.latent else None
  for name, mine in frozen_networks.networks(recipe).items() if theirs else ():
    if theirs[name] != mine:
      raise errors.ConfigError(
        f'latents.{name} is {mine!r}, and {where} was trained with {theirs[name]!r}; name what is '
        'in it or beside it'
      )
  theirs = identity.flat({'model': card['model'], 'noise': card['noise']})
  mine = identity.flat(reading.to_dict(recipe))
  free = {'model.dropout', 'model.dtype', *(('model.predict',) if first == 'teacher' else ())}
  if first == 'teacher' and not card['model'].get('extra_channels', 0):
    free.add('model.extra_channels')  # it learns to read a mask
  if not card['takes_w']:  # what is to be built, not what is there
    free |= {'model.w_features', 'model.w_scale'}
  for key, value in theirs.items():
    if key not in free and mine.get(key) != value:
      raise errors.ConfigError(f'{key}={mine.get(key)!r} differs from {where}, which has {value!r}')


def same_run(recipe: recipes.Recipe, workdir: storage.epath.Path) -> None:
  """A workdir belongs to one config: what reaches the parameters may not change."""
  file = workdir / 'config.json'
  if storage.exists(file):
    old = storage.read_json(file)
    if not isinstance(old, dict):
      raise errors.CheckpointError(f'{file} is damaged: it holds no config; restore it from a copy')
    with contextlib.suppress(errors.ConfigError):
      old = reading.to_dict(reading.from_config(old))  # with the keys that came since
    changed = identity.differences(old, reading.to_dict(recipe))
    if changed:
      raise errors.ConfigError(
        f'--workdir={workdir} holds a run with another config ({_some(changed)}); '
        'choose another workdir or restore these values'
      )


def _some(items: list[str], most: int = 12) -> str:
  more = f'; and {len(items) - most} more' if len(items) > most else ''
  return '; '.join(items[:most]) + more


def warn_of_eps(recipe: recipes.Recipe) -> None:
  """v = (eps - sigma z) / alpha: an error of eps counts 1 / alpha times in what is learned."""
  weights = {s: recipe.settings(s).weight for s in recipe.sections if s != 'teacher'}
  stage = next((s for s, weight in weights.items() if weight != 'snr'), None)
  times = math.sqrt(1.0 + math.exp(-float(networks.noise(recipe.noise)(np.ones(1, np.float32))[0])))
  if recipe.model.predict == 'eps' and stage and times > _MOST_IN_V:
    progress.say(
      f"warning: with model.predict='eps' an error at t = 1 counts {times:,.0f} times "
      f"in v, under {stage}.weight={weights[stage]!r}; take 'snr', or first train the teacher to "
      "predict v: stages begins with 'teacher', model.predict='v'"
    )
