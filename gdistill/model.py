"""A network by its settings, and a finished round's folder as a model that returns v."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import numpy as jnp

from gdistill import checkpoints
from gdistill import errors
from gdistill import recipe as recipes
from gdistill import storage
from gdistill.core import predict
from gdistill.core import schedule
from gdistill.core import types
from gdistill.models import unet


def build(settings: recipes.Model, takes_w: bool, remat: bool = False) -> unet.UNet:
  return unet.UNet(
    channels=settings.channels,
    multipliers=settings.multipliers,
    num_blocks=settings.num_blocks,
    attention_resolutions=settings.attention_resolutions,
    num_classes=settings.num_classes,
    emb_channels=settings.emb_channels,
    heads=settings.heads,
    head_dim=settings.head_dim,
    groups=settings.groups,
    dropout=settings.dropout,
    w_features=settings.w_features if takes_w else 0,
    w_scale=settings.w_scale,
    dtype=jnp.dtype(settings.dtype),
    remat=remat,
  )


def noise(settings: recipes.Noise) -> schedule.Schedule:
  if settings.name == 'cosine':
    return schedule.cosine(settings.logsnr_min, settings.logsnr_max)
  return getattr(schedule, settings.name)(settings.beta_start, settings.beta_end)


def image_shape(settings: recipes.Model) -> tuple[int, int, int]:
  return (settings.image_size, settings.image_size, settings.image_channels)


def initial_params(net: unet.UNet, settings: recipes.Model, key: jax.Array) -> Any:
  """Fresh parameters; the same key gives the same values in every layer two networks share."""
  one = jnp.ones(1)
  arguments = (jnp.zeros((1, *image_shape(settings))), one, {'label': jnp.zeros(1, jnp.int32)}, one)
  return net.init(key, *arguments)['params']


@functools.lru_cache
def initial_shapes(net: unet.UNet, settings: recipes.Model) -> Any:
  """The shapes of initial_params, remembered because tracing is slow: shared, not to be changed."""
  return jax.eval_shape(lambda: initial_params(net, settings, jax.random.key(0)))


def drawn(draw: Callable, key: jax.Array, shardings: Any = None) -> Any:
  """draw(key), compiled without optimisation: it runs once, and compiling it is what costs."""
  given = {} if shardings is None else {'out_shardings': shardings}
  jitted = jax.jit(draw, **given)
  return jitted.lower(key).compile(compiler_options={'xla_backend_optimization_level': 0})(key)


def as_v_fn(
  net: unet.UNet,
  params: Any,
  settings: recipes.Model,
  noise_schedule: schedule.Schedule,
  dropout: tuple[jax.Array, jax.Array] | None = None,
) -> types.VFn:
  """The network as v_fn(z, logsnr, cond, w); with dropout = (key, ids [B]), as it is trained."""

  def network(z, logsnr, cond, w):
    key, ids = (None, None) if dropout is None else dropout
    rngs = None if key is None else {'dropout': key}
    return net.apply({'params': params}, z, logsnr, cond, w, ids, rngs=rngs)

  return predict.as_v(network, settings.predict, noise_schedule)


def as_teacher(settings: recipes.Model, params: Any) -> Any:
  """Parameters to learn from, in the precision the network uses them in."""
  return unet.as_teacher(params, jnp.dtype(settings.dtype))


def grown(net: unet.UNet, settings: recipes.Model, key: jax.Array, old: Mapping[str, Any]) -> Any:
  """The parameters of `net` with every layer that `old` has: a student that starts as its teacher.

  Only the w projection may be missing in `old`; anything else is another architecture.
  """
  shapes = initial_shapes(net, settings)
  names = set(shapes) - set(old)
  odd = (names - {'w_proj'}) | (set(old) - set(shapes))
  if odd:
    raise errors.CheckpointError(
      f'the teacher has another architecture: first difference at layer {min(odd)}; '
      'use its own model settings'
    )

  def missing():
    fresh = initial_params(net, settings, key)
    return {name: fresh[name] for name in names}

  return {**old, **(jax.jit(missing)() if names else {})}


@dataclasses.dataclass(frozen=True)
class Folder:
  """What a finished round's card says, checked, and its parameters."""

  path: storage.epath.Path
  card: dict
  settings: recipes.Model
  noise: recipes.Noise
  params: Any

  @property
  def name(self) -> str:
    return self.path.name

  @property
  def takes_w(self) -> bool:
    return self.card['takes_w']

  @property
  def guided(self) -> bool:
    """Whether sampling at w needs guidance, two network calls a step."""
    return self.card['guided']

  @property
  def num_steps(self) -> int:
    return self.card['num_steps']


def read_folder(path: Any) -> Folder:
  """CheckpointError or ConfigError where there is no finished round to read."""
  folder = storage.path(path)
  card = checkpoints.read_card(folder)
  try:
    lists = {k: tuple(card['model'][k]) for k in ('multipliers', 'attention_resolutions')}
    settings = recipes.Model(**{**card['model'], **lists})
    noise_settings = recipes.Noise(**card['noise'])
    net = build(settings, card['takes_w'])
  except (KeyError, TypeError) as e:
    raise errors.CheckpointError(f'{folder}/card.json lacks or misnames {e}') from e
  params = checkpoints.read_params(folder, initial_shapes(net, settings))
  return Folder(folder, card, settings, noise_settings, params)
