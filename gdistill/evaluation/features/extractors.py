"""Feature extractors: networks that map pixels to {name: features}, all with one interface."""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from gdistill import errors
from gdistill.devices import mesh as meshes
from gdistill.evaluation.features import classifier
from gdistill.evaluation.features import weights
from gdistill.models import clip
from gdistill.models import efficientnet
from gdistill.models import inception

BATCH = 128  # number of pictures in a batch; the last batch is padded to this size


@dataclasses.dataclass(frozen=True, eq=False)
class Extractor:
  """A feature network, its parameters, and the settings that a row of metrics records about it.

  `apply(params, pixels [B, H, W, C] uint8)` returns {name: [B, size]} and is a pure function.
  `features` is the name of the output on which Fréchet distances are computed.
  `logits` is the name of the output for the inception score; '' if the network has no logits.
  `spatial` is the name of the output for sFID; '' if the network has no spatial features.
  """

  name: str
  distance: str  # name of the Fréchet distance in this network's features: 'FID', ...
  apply: Callable[[Any, jax.Array], Mapping[str, jax.Array]]
  params: Any
  digest: str  # hash of the network's weights
  protocol: Mapping[str, Any]  # resizing and normalisation of the pixels, in words
  features: str
  size: int  # length of a feature vector
  logits: str = ''
  spatial: str = ''
  channels: int | None = 3  # channels of the input pictures; None allows any number
  num_classes: int = 0  # number of logits if the logits predict the run's classes, else 0

  @property
  def names(self) -> tuple[str, ...]:
    """The names of the network's outputs that `extract` returns."""
    return tuple(n for n in (self.features, self.logits, self.spatial) if n)

  @property
  def key(self) -> str:
    """The extractor's name and twelve hex digits of a hash of its weights and preprocessing."""
    text = json.dumps([self.digest, dict(self.protocol)], sort_keys=True)
    return f'{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}'

  def __call__(self, pixels: jax.Array) -> dict[str, jax.Array]:
    """Returns the network's outputs {name: array} for one batch of pixels; compiles once per shape.

    The output arrays stay on the devices.
    """
    mesh = getattr(getattr(pixels, 'sharding', None), 'mesh', None)
    if mesh not in self._placed:
      everywhere = mesh and jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
      outputs = meshes.by_rows(self._outputs, mesh, (False, True)) if mesh else self._outputs
      self._placed[mesh] = jax.jit(outputs), jax.device_put(self.params, everywhere)
    compiled, params = self._placed[mesh]
    return compiled(params, pixels)

  @functools.cached_property
  def _placed(self) -> dict[Any, Any]:
    return {}  # {mesh: (compiled network, a copy of its parameters on all devices of the mesh)}

  def _outputs(self, params: Any, pixels: jax.Array) -> dict[str, jax.Array]:
    found = self.apply(params, pixels)
    return {name: found[name].astype(jnp.float32) for name in self.names}

  def check(self, shape: tuple[int, ...]) -> None:
    """Raises ConfigError if pictures of `shape` [H, W, C] have a wrong number of channels C."""
    if self.channels is not None:
      _check_channels(self.name, self.channels, shape[-1])


def _check_channels(name: str, takes: int, channels: int) -> None:
  if channels != takes:
    raise errors.ConfigError(
      f'the feature network {name} takes pictures with {takes} channels, and the pictures have '
      f'{channels}; convert the pictures to {takes} channels, or for a run set '
      'evaluation.extractor=classifier, a network trained on the data of the run'
    )


def extract(extractor: Extractor, pixels: np.ndarray, batch: int = BATCH) -> dict[str, np.ndarray]:
  """Returns the network's outputs {name: float32 [n, size]} for pixels uint8 [n, H, W, C].

  The outputs are computed in batches of `batch` pictures; the last batch is padded to `batch`.
  """
  if pixels.ndim != 4 or pixels.dtype != np.uint8:
    raise ValueError(f'{pixels.shape=}, {pixels.dtype=}: give pixels as uint8 [n, H, W, C]')
  extractor.check(pixels.shape[1:])
  rows = list(batches(extractor, pixels, batch))
  return {name: np.concatenate([row[name] for row in rows]) for name in extractor.names}


def batches(
  extractor: Extractor, pixels: np.ndarray, batch: int = BATCH
) -> Iterator[dict[str, np.ndarray]]:
  """Yields the outputs {name: float32 [b, size]} of each batch of pixels uint8 [n, H, W, C]."""
  devices = jax.local_devices()
  mesh = jax.sharding.Mesh(np.array(devices[: math.gcd(batch, len(devices))]), ('data',))
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  for start in range(0, max(len(pixels), 1), batch):
    x = pixels[start : start + batch]
    padded = np.pad(x, [(0, batch - len(x))] + [(0, 0)] * 3)
    found = extractor(jax.device_put(padded, rows))
    yield {name: np.asarray(value)[: len(x)] for name, value in found.items()}


def check(name: str, file: str, channels: int) -> None:
  """Raises an error if the public network `name` cannot measure pictures with `channels` channels.

  Raises ConfigError for an unknown name or another number of channels than 3. Raises DataError if
  the network's weight file does not exist.
  """
  if name not in _PUBLIC:
    raise errors.ConfigError(f'--extractor={name!r} must be one of {", ".join(_PUBLIC)}')
  weights.find(name, file)
  _check_channels(name, 3, channels)


def load(name: str, file: str = '', **options: str) -> Extractor:
  """Returns the extractor of a public network; reads its weights from `file`.

  If `file` is '', the weights are read from the network's default path. The network 'inception'
  takes the option resize='half_pixel', which resizes pictures in the same way as pytorch-fid.
  """
  check(name, file, 3)
  params, metadata = weights.read(name, weights.find(name, file))
  return _PUBLIC[name](params, metadata, **options)


def of_classifier(params: classifier.Params) -> Extractor:
  """Returns the extractor made from a classifier that was trained on the run's own data set."""
  return Extractor(
    name='classifier', distance='FD', apply=classifier.apply, params=classifier.tree(params),
    digest=classifier.digest(params), features='features', logits='logits', channels=None,
    protocol={'resize': 'none', 'normalisation': 'x / 127.5 - 1'}, size=classifier.FEATURE_SIZE,
    num_classes=len(params['logits/bias']),
  )  # fmt: skip


def of_inception(params: Any, metadata: Mapping[str, str], resize: str = 'tf1') -> Extractor:
  """Returns the extractor for FID, which is the network Inception-v3.

  With resize='half_pixel' pictures are resized in the same way as in pytorch-fid.
  """
  net = inception.Inception()
  how = {
    'tf1': ('(x - 128) / 128', 'TensorFlow 1, bilinear, corners at i H / 299'),
    'half_pixel': ('2 x / 255 - 1', 'bilinear with half-pixel centres (pytorch-fid)'),
  }
  if resize not in how:
    raise errors.ConfigError(f'{resize=} must be one of {", ".join(how)}')

  def apply(params, pixels):
    return net.apply({'params': params}, inception.prepared(pixels, resize))

  return Extractor(
    name='inception', distance='FID', apply=apply, params=params, digest=_digest(metadata),
    protocol={'resize': f'{how[resize][1]} to 299', 'normalisation': how[resize][0]},
    features='2048', size=inception.TAPS['2048'], logits='logits_unbiased', spatial='spatial',
  )  # fmt: skip


def _lite0(params, metadata) -> Extractor:
  net = efficientnet.EfficientNetLite0()

  def apply(params, pixels):
    return net.apply({'params': params}, efficientnet.prepared(pixels))

  return Extractor(
    name='lite0', distance='FD-lite0', apply=apply, params=params, digest=_digest(metadata),
    protocol={
      'resize': f'bilinear, antialiased, to {efficientnet.SIZE}',
      'normalisation': f'(x - {efficientnet.MEAN:g}) / {efficientnet.STD:g}',
    },
    features='features', size=efficientnet.FEATURE_SIZE, logits='logits',
  )  # fmt: skip


def _clip(name: str, tower: clip.Tower, patch: int) -> Callable[..., Extractor]:
  def make(params, metadata) -> Extractor:
    net = clip.Image(tower, patch)

    def apply(params, pixels):
      with jax.default_matmul_precision('highest'):
        return {'image': net.apply({'params': params['image']}, clip.prepared(pixels))}

    return Extractor(
      name=name, distance=f'FD-{name}', apply=apply, params=params, digest=_digest(metadata),
      protocol={
        'resize': f'cubic, antialiased, shorter side to {clip.SIZE}, centre crop',
        'normalisation': f'(x / 255 - {clip.MEAN}) / {clip.STD}',
      },
      features='image', size=tower.projection,
    )  # fmt: skip

  return make


_PUBLIC = {
  'inception': of_inception,
  'lite0': _lite0,
  'clip_b32': _clip('clip_b32', clip.IMAGE_B32, 32),
  'clip_l14': _clip('clip_l14', clip.IMAGE_L14, 14),
}


def _digest(metadata: Mapping[str, str]) -> str:
  return metadata['sha256'][:16]
