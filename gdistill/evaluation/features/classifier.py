"""A small classifier, trained on a run's data set, whose last hidden layer gives the features.

The classifier measures pictures that are unlike those in the training data of public feature
networks, such as 8x8 digits. A Fréchet distance in the classifier's features is not an FID, and
two distances are comparable only if the same classifier measured both. The classifier's parameters
are a deterministic function of (pixels, labels, seed).
"""

import contextlib
import io
import itertools
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
import optax
from flax import linen as nn
from flax import traverse_util
from jax import numpy as jnp

from gdistill.evaluation.features import weights

Params = dict[str, np.ndarray]  # parameters by path: {'conv0/kernel': array, ...}

FEATURE_SIZE = 64
_UPDATES, _PASSES = 800, 100  # training ends after 800 updates or 100 epochs, whichever is first
_BATCH = 128
_LOOK_EVERY = 10  # updates between two calls of look(), which raises if the process should stop
_LEARNING_RATE = 3e-3


class Classifier(nn.Module):
  """A network of 3x3 convolutions, a dense layer of 64 ReLU units, and a dense layer of logits.

  The convolutions reduce a picture to at most 4x4 pixels. The outputs of the 64 ReLU units are the
  features, and the logits are a linear function of the features.
  """

  num_convs: int
  num_classes: int

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    for i in range(self.num_convs):
      width, stride = min(16 * 2**i, 64), 1 if i == 0 else 2
      # Full precision: features must not depend on the accelerator's default matmul precision.
      conv = nn.Conv(width, (3, 3), stride, precision='highest', name=f'conv{i}')
      x = nn.relu(conv(x))
    x = jnp.reshape(x, (x.shape[0], -1))
    x = nn.relu(nn.Dense(FEATURE_SIZE, precision='highest', name='features')(x))
    return x, nn.Dense(self.num_classes, precision='highest', name='logits')(x)


def train_classifier(
  pixels: np.ndarray,
  labels: np.ndarray,
  num_classes: int,
  seed: int = 0,
  look: Callable[[], None] = lambda: None,
) -> Params:
  """Returns the parameters of a classifier that Adam trains on pictures [n, H, W, C] uint8.

  Training takes 800 updates or 100 epochs, whichever is fewer. Labels are [n] integers in
  [0, num_classes). Two calls with the same arguments on the same machine return identical
  parameters, because training runs on the CPU if JAX has a CPU backend. `look()` is called every
  10 updates and raises if the process should stop.
  """
  _check_pixels(pixels)
  labels = np.asarray(labels, np.int32)
  if labels.shape != pixels.shape[:1] or not labels.size:
    raise ValueError(f'{labels.shape=}: give one label for each of {pixels.shape[0]} images')
  if labels.min() < 0 or labels.max() >= num_classes:
    raise ValueError(
      f'labels run from {labels.min()} to {labels.max()}, and must be from 0 to {num_classes - 1}; '
      'correct the labels or num_classes'
    )
  net = Classifier(_num_convs(pixels), num_classes)
  updates = min(_UPDATES, -(-_PASSES * len(pixels) // _BATCH))
  optimizer = optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, updates))

  @jax.jit
  def update(params, opt, x, label):
    def loss(params):
      logits = net.apply({'params': params}, _images(x))[1]
      return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

    updates, opt = optimizer.update(jax.grad(loss)(params), opt)
    return optax.apply_updates(params, updates), opt

  with _on_cpu():
    params = _start(net, pixels.shape[1:], seed)
    opt = optimizer.init(params)
    # A Python loop, not lax.scan: on CPU the gradient of a convolution is far slower inside a scan.
    for i, (x, label) in enumerate(itertools.islice(_batches(pixels, labels, seed), updates)):
      params, opt = update(params, opt, x, label)
      if i % _LOOK_EVERY == 0:
        # JAX queues updates and returns early; waiting here lets look() stop training in between.
        jax.block_until_ready(params)
        look()
  return jax.tree.map(np.asarray, traverse_util.flatten_dict(params, sep='/'))


def apply(params: Mapping, pixels: jax.Array) -> dict[str, jax.Array]:
  """Returns {'features': [B, 64], 'logits': [B, classes]} of pixels uint8 [B, H, W, C].

  The features are the output of the last ReLU. `params` is the nested dict of the classifier's
  parameters that `tree` returns.
  """
  net = Classifier(_num_convs(pixels), params['logits']['bias'].shape[0])
  features, logits = net.apply({'params': params}, _images(pixels))
  return {'features': features, 'logits': logits}


def tree(params: Params) -> dict:
  """Returns flat parameters {'conv0/kernel': array, ...} as the nested dict that Flax takes."""
  return traverse_util.unflatten_dict(dict(params), sep='/')


def digest(params: Mapping[str, np.ndarray]) -> str:
  """Returns sixteen hex digits of a hash over the parameters of a classifier.

  Fréchet distances in two reports are comparable only if the classifiers that measured the two
  reports have equal hashes.
  """
  return weights.digest(params)[:16]


def to_bytes(params: Mapping[str, np.ndarray]) -> bytes:
  """Returns the bytes of an .npz file that holds the classifier's parameters."""
  file = io.BytesIO()
  np.savez(file, **params)
  return file.getvalue()


def from_bytes(data: bytes) -> Params:
  """Returns the classifier's parameters from the bytes of the .npz file that `to_bytes` made."""
  with np.load(io.BytesIO(data), allow_pickle=False) as file:
    return {name: file[name] for name in file.files}


def _start(net: Classifier, shape: tuple[int, ...], seed: int) -> dict:
  """Returns initial parameters: kernels from He's normal distribution, and zero biases.

  The kernels are drawn with numpy, because compiling Flax's initialisation would take half of the
  training time.
  """
  x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  shapes = jax.eval_shape(lambda x: net.init(jax.random.key(0), x)['params'], x)
  rng = np.random.default_rng([seed, 1])  # another random stream than in `_batches`

  def draw(leaf):
    if len(leaf.shape) == 1:
      return np.zeros(leaf.shape, np.float32)
    scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
    return (scale * rng.standard_normal(leaf.shape)).astype(np.float32)

  return jax.tree.map(draw, shapes)


def _images(pixels: jax.Array) -> jax.Array:
  return jnp.asarray(pixels, jnp.float32) / 127.5 - 1.0


def _num_convs(pixels: np.ndarray) -> int:
  """Returns the number of convolutions: 1, and 1 for each halving of the longer side down to 4."""
  return 1 + max(0, int(np.ceil(np.log2(max(pixels.shape[1:3]) / 4))))


def _batches(
  pixels: np.ndarray, labels: np.ndarray, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields endless training batches (pixels, labels), drawn at random with replacement.

  Each picture is shifted at random by up to max(1, side / 16) pixels, where side is the longer side
  of the picture. The seed determines which pictures are drawn and how far each picture is shifted.
  """
  rng = np.random.default_rng(seed)
  height, width = pixels.shape[1:3]
  reach = max(1, max(height, width) // 16)
  padded = np.pad(pixels, [(0, 0), (reach, reach), (reach, reach), (0, 0)], 'edge')
  while True:
    index = rng.integers(len(pixels), size=_BATCH)
    down, right = rng.integers(2 * reach + 1, size=(2, _BATCH))
    rows = down[:, None] + np.arange(height)
    columns = right[:, None] + np.arange(width)
    yield padded[index[:, None, None], rows[:, :, None], columns[:, None, :]], labels[index]


def _on_cpu() -> contextlib.AbstractContextManager:
  try:
    return jax.default_device(jax.local_devices(backend='cpu')[0])
  except RuntimeError:  # the environment variable JAX_PLATFORMS excludes the CPU
    return contextlib.nullcontext()


def _check_pixels(pixels: np.ndarray) -> None:
  if pixels.ndim != 4 or pixels.dtype != np.uint8:
    raise ValueError(f'{pixels.shape=}, {pixels.dtype=}: give pixels as uint8 [n, H, W, C]')
