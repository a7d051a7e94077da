"""Builds a network from settings, and turns the network into a function that returns v."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp

from gdistill import errors
from gdistill.core import predict
from gdistill.core import projections
from gdistill.core import schedule
from gdistill.core import types
from gdistill.models import dit
from gdistill.models import embeddings
from gdistill.models import latent_unet
from gdistill.models import unet
from gdistill.recipe import settings as recipes

Network = unet.UNet | latent_unet.LatentUNet | dit.DiT
_MODULES = {'unet': unet, 'latent_unet': latent_unet, 'dit': dit}


def build(
  settings: recipes.Model,
  takes_w: bool,
  remat: bool = False,
  noise_settings: recipes.Noise | None = None,
) -> Network:
  """Returns the network of `settings`; settings.time='index' also needs `noise_settings`."""
  shared = dict(
    num_classes=settings.num_classes,
    w_features=settings.w_features if takes_w else 0,
    w_scale=settings.w_scale,
    dtype=jnp.dtype(settings.dtype),
    remat=remat,
    time=_time(settings, noise_settings),
  )
  if settings.network == 'dit':
    return dit.DiT(
      width=settings.channels,
      depth=settings.num_blocks,
      heads=settings.heads or settings.channels // settings.head_dim,
      patch=settings.patch,
      learned_sigma=settings.learned_sigma,
      freq_shift=settings.freq_shift,
      **shared,
    )
  shared |= dict(
    num_blocks=settings.num_blocks,
    emb_channels=settings.emb_channels,
    groups=settings.groups,
    dropout=settings.dropout,
    epsilon=settings.epsilon,
  )
  if settings.network == 'latent_unet':
    widths = tuple(settings.channels * m for m in settings.multipliers)
    sizes = [settings.image_size // 2**i for i in range(len(widths))]
    return latent_unet.LatentUNet(
      channels=widths,
      attention=tuple(size in settings.attention_resolutions for size in sizes),
      heads=tuple(settings.heads or width // settings.head_dim for width in widths),
      context=settings.context,
      context_dim=settings.context_dim,
      context_length=settings.context_length,
      transformer_depth=settings.transformer_depth,
      linear_projection=settings.linear_projection,
      out_channels=settings.image_channels,
      extra_channels=settings.extra_channels,
      **shared,
    )
  return unet.UNet(
    channels=settings.channels,
    multipliers=settings.multipliers,
    attention_resolutions=settings.attention_resolutions,
    heads=settings.heads,
    head_dim=settings.head_dim,
    freq_shift=settings.freq_shift,
    cos_first=settings.cos_first,
    learned_sigma=settings.learned_sigma,
    extra_channels=settings.extra_channels,
    **shared,
  )


def _time(settings: recipes.Model, noise_settings: recipes.Noise | None) -> Callable:
  """Returns the function from logsnr to the number that the network embeds as time."""
  if settings.time == 'phi':
    return embeddings.phi_index
  if settings.time == 'linear':
    return embeddings.linear_time
  return _Index(betas(noise_settings).tobytes())


@dataclasses.dataclass(frozen=True)
class _Index:
  """Function from logsnr to timestep index; two instances with equal betas compare as equal."""

  betas: bytes

  def __call__(self, logsnr: types.PerExample) -> types.PerExample:
    return schedule.index(logsnr, np.frombuffer(self.betas))


def betas(settings: recipes.Noise) -> np.ndarray:
  """Returns the 1,000 betas of the discrete noise schedule that `settings` describes."""
  if settings.name == 'squared_cosine':
    found = schedule.squared_cosine_betas()
  else:
    make = {'linear_beta': schedule.linear_betas, 'scaled_linear': schedule.scaled_linear_betas}
    found = make[settings.name](settings.beta_start, settings.beta_end)
  return schedule.zero_terminal_snr(found) if settings.zero_terminal_snr else found


def times(settings: recipes.Noise) -> int | None:
  """Returns the number of times of a discrete noise schedule, or None for a continuous schedule."""
  return None if settings.name == 'cosine' else len(betas(settings))


def noise(settings: recipes.Noise) -> schedule.Schedule:
  """Returns the noise schedule that `settings` describes, a function from t to logsnr."""
  if settings.name == 'cosine':
    return schedule.cosine(settings.logsnr_min, settings.logsnr_max)
  return schedule.discrete(betas(settings))


def image_shape(settings: recipes.Model) -> tuple[int, int, int]:
  """Returns the shape [h, w, c] of one picture or latent that the network takes as input."""
  return (settings.image_size, settings.image_size, settings.image_channels)


def projection(latent: bool) -> types.Project | None:
  """Returns the function that clips x_hat to [-1, 1] in samplers; None for latents."""
  return None if latent else projections.clip


def initial_params(net: Network, settings: recipes.Model, key: jax.Array) -> Any:
  """Returns random parameters; with one `key`, layers of equal name and shape get equal values."""
  one, (height, width, channels) = jnp.ones(1), image_shape(settings)
  cond = {'label': jnp.zeros(1, jnp.int32)}
  if settings.context == 'text':
    cond['text'] = jnp.zeros((1, settings.context_length, settings.context_dim))
  if settings.extra_channels:
    cond['extra'] = jnp.zeros((1, height, width, settings.extra_channels))
  return net.init(key, jnp.zeros((1, height, width, channels)), one, cond, one)['params']


@functools.lru_cache
def initial_shapes(net: Network, settings: recipes.Model) -> Any:
  """Returns the shapes of initial_params as a cached tree, which callers must not change."""
  return jax.eval_shape(lambda: initial_params(net, settings, jax.random.key(0)))


def drawn(draw: Callable, key: jax.Array, shardings: Any = None) -> Any:
  """Returns draw(key); `draw` runs only once, so XLA compiles without optimisation to save time."""
  given = {} if shardings is None else {'out_shardings': shardings}
  jitted = jax.jit(draw, **given)
  return jitted.lower(key).compile(compiler_options={'xla_backend_optimization_level': 0})(key)


def as_v_fn(
  net: Network,
  params: Any,
  settings: recipes.Model,
  noise_schedule: schedule.Schedule,
  dropout: tuple[jax.Array, jax.Array] | None = None,
) -> types.VFn:
  """Returns the network as v_fn(z, logsnr, cond, w); dropout=(key, ids [B]) turns dropout on."""

  def network(z, logsnr, cond, w):
    key, ids = (None, None) if dropout is None else dropout
    rngs = None if key is None else {'dropout': key}
    return net.apply({'params': params}, z, logsnr, cond, w, ids, rngs=rngs)

  if settings.predict == 'flow':
    return predict.flow_as_v(network)
  return predict.as_v(network, settings.predict, noise_schedule)


class Pair(NamedTuple):
  """Parameters of a conditional network and of the unconditional network that guides it."""

  cond: Any
  null: Any


def as_teacher(settings: recipes.Model, params: Any) -> Any:
  """Casts a teacher's parameters to the precision in which the network computes."""
  cast = functools.partial(_MODULES[settings.network].as_teacher, dtype=jnp.dtype(settings.dtype))
  return Pair(*map(cast, params)) if isinstance(params, Pair) else cast(params)


def grown(net: Network, settings: recipes.Model, key: jax.Array, old: Mapping[str, Any]) -> Any:
  """Returns parameters for the student `net`, copied from the teacher's parameters `old`.

  If `old` has no projection of w, or fewer input channels in the first convolution, the missing
  weights start at zero, so that the student first computes the same as the teacher. Raises
  CheckpointError if `old` lacks another layer or has a layer that `net` does not have.
  """
  shapes = initial_shapes(net, settings)
  names = set(shapes) - set(old)
  odd = (names - {'w_proj'}) | (set(old) - set(shapes))
  if odd:
    raise errors.CheckpointError(
      f'the teacher has another architecture than the config: layer {min(odd)} is only in one of '
      "the two; copy the section model of the teacher's card.json into the config"
    )

  def missing():
    fresh = initial_params(net, settings, key)
    return {name: fresh[name] for name in names}

  return {**_widened(shapes, old), **(jax.jit(missing)() if names else {})}


def _widened(shapes: Mapping[str, Any], old: Mapping[str, Any]) -> Mapping[str, Any]:
  """Returns `old`, with zeros for input channels that the first convolution of `old` lacks."""
  first = old.get('conv_in')
  more = shapes['conv_in']['kernel'].shape[2] - first['kernel'].shape[2] if first else 0
  if more <= 0:
    return old
  kernel = jnp.pad(first['kernel'], [(0, 0), (0, 0), (0, more), (0, 0)])
  return {**old, 'conv_in': {**first, 'kernel': kernel}}
