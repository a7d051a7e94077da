"""The Inception-v3 of FID (TensorFlow's graph of 2015-12-05): resize, features and logits.

FID's network differs from the Inception-v3 of today's libraries: average pooling at an edge leaves
the padding out, the last block has max pooling where the other blocks have average pooling, and
there are 1,008 classes. Batch norms are folded into the convolutions (convert.folding), so a layer
is relu(conv(h) + bias).
"""

import jax
import numpy as np
from flax import linen as nn
from jax import numpy as jnp

SIZE = 299
# {name of a feature vector: its number of channels}. A feature is a channel's mean over the pixels.
TAPS = {'64': 64, '192': 192, '768': 768, '2048': 2048}
NUM_CLASSES = 1008
BATCH_NORM_EPSILON = 1e-3  # epsilon of the batch norms of the published weights
RESIZES = ('tf1', 'half_pixel')


def prepared(pixels: jax.Array, resize: str = 'tf1') -> jax.Array:
  """Returns pixels [B, H, W, 3] in 0..255 as the network's input [B, 299, 299, 3].

  `resize` is one of two bilinear resizes, whose FIDs must not be compared with each other:
    'tf1'         is the resize of TensorFlow 1 and of the original FID: output pixel i lies at
                  input position i * H / 299, and a resized value x becomes (x - 128) / 128.
    'half_pixel'  is the resize of pytorch-fid: output pixel i lies at input position
                  (i + 0.5) * H / 299 - 0.5, and a resized value x becomes 2 x / 255 - 1.
  """
  if resize not in RESIZES:
    raise ValueError(f'{resize=} must be one of {", ".join(RESIZES)}')
  _, height, width, _ = pixels.shape
  x = pixels.astype(jnp.float32)
  for axis, size in ((1, height), (2, width)):
    x = jnp.moveaxis(x, axis, -1)
    # The resize is a matrix product, although a row of _bilinear has only two nonzero weights,
    # because a gather is no faster on an accelerator.
    x = jnp.einsum('...i,oi->...o', x, _bilinear(size, resize), precision='highest')
    x = jnp.moveaxis(x, -1, axis)
  return (x - 128.0) / 128.0 if resize == 'tf1' else 2.0 * x / 255.0 - 1.0


def _bilinear(size: int, resize: str) -> np.ndarray:
  """Returns the resize of one axis as a matrix [299, size]: the weight of each input pixel in each
  output pixel.
  """
  shift = 0.5 if resize == 'half_pixel' else 0.0
  # Positions are float32 because TensorFlow 1 computes positions in float32, whose rounding moves
  # the resized values by 1e-5 of the range of the values for 256 input pixels.
  scale, index = np.float32(size / SIZE), np.arange(SIZE, dtype=np.float32)
  place = np.maximum((index + np.float32(shift)) * scale - np.float32(shift), 0.0)
  lower = np.minimum(place.astype(np.int64), size - 1)
  upper, share = np.minimum(lower + 1, size - 1), place - lower
  weights = np.zeros((SIZE, size))
  np.add.at(weights, (np.arange(SIZE), lower), 1.0 - share)
  np.add.at(weights, (np.arange(SIZE), upper), share)
  return weights.astype(np.float32)


class Inception(nn.Module):
  """[B, 299, 299, 3] -> {'64', '192', '768', '2048': [B, channels], 'spatial': [B, 2023], 'logits',
  'logits_unbiased': [B, 1008]}.

  'spatial' holds the features of sFID: the first 7 channels of the 17x17 pixels of Mixed_6d's 1x1
  branch. 'logits_unbiased' are the logits without the last layer's bias, as in the original code of
  the Inception score.
  """

  precision: str = 'highest'

  @nn.compact
  def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
    found = {}
    h = self._conv(x, 'Conv2d_1a_3x3', 32, (3, 3), 2)
    h = self._conv(h, 'Conv2d_2a_3x3', 32, (3, 3))
    h = self._conv(h, 'Conv2d_2b_3x3', 64, (3, 3), padding='SAME')
    h = _pooled(h, nn.max_pool, 2, 'VALID')
    found['64'] = h.mean((1, 2))
    h = self._conv(h, 'Conv2d_3b_1x1', 80)
    h = self._conv(h, 'Conv2d_4a_3x3', 192, (3, 3))
    h = _pooled(h, nn.max_pool, 2, 'VALID')
    found['192'] = h.mean((1, 2))
    for block, channels in (('Mixed_5b', 32), ('Mixed_5c', 64), ('Mixed_5d', 64)):
      h = self._mixed_5(h, block, channels)
    h = self._mixed_6a(h, 'Mixed_6a')
    for block, channels in (
      ('Mixed_6b', 128), ('Mixed_6c', 160), ('Mixed_6d', 160), ('Mixed_6e', 192),
    ):  # fmt: skip
      one, h = self._mixed_6(h, block, channels)
      if block == 'Mixed_6d':
        found['spatial'] = one[..., :7].reshape(len(one), -1)
    found['768'] = h.mean((1, 2))
    h = self._mixed_7a(h, 'Mixed_7a')
    h = self._mixed_7(h, 'Mixed_7b', nn.avg_pool)
    h = self._mixed_7(h, 'Mixed_7c', nn.max_pool)
    found['2048'] = h.mean((1, 2))
    kernel = self.param('fc_kernel', nn.initializers.lecun_normal(), (2048, NUM_CLASSES))
    bias = self.param('fc_bias', nn.initializers.zeros_init(), (NUM_CLASSES,))
    found['logits_unbiased'] = jnp.dot(found['2048'], kernel, precision=self.precision)
    found['logits'] = found['logits_unbiased'] + bias[None]
    return found

  def _conv(self, h, name, channels, size=(1, 1), strides=1, padding='VALID'):
    layer = nn.Conv(channels, size, strides, padding=padding, precision=self.precision, name=name)
    return nn.relu(layer(h))

  def _chain(self, h, block, *layers):
    """Applies `layers`, each a convolution (name, channels, kernel[, strides, padding]), to h."""
    for name, channels, size, *more in layers:
      strides, padding = more or (1, 'SAME')
      h = self._conv(h, f'{block}_{name}', channels, size, strides, padding)
    return h

  def _mixed_5(self, h, block, channels):
    return jnp.concatenate([
      self._chain(h, block, ('branch1x1', 64, (1, 1))),
      self._chain(h, block, ('branch5x5_1', 48, (1, 1)), ('branch5x5_2', 64, (5, 5))),
      self._chain(
        h, block, ('branch3x3dbl_1', 64, (1, 1)), ('branch3x3dbl_2', 96, (3, 3)),
        ('branch3x3dbl_3', 96, (3, 3)),
      ),
      self._chain(_pooled(h, nn.avg_pool), block, ('branch_pool', channels, (1, 1))),
    ], -1)  # fmt: skip

  def _mixed_6a(self, h, block):
    return jnp.concatenate([
      self._chain(h, block, ('branch3x3', 384, (3, 3), 2, 'VALID')),
      self._chain(
        h, block, ('branch3x3dbl_1', 64, (1, 1)), ('branch3x3dbl_2', 96, (3, 3)),
        ('branch3x3dbl_3', 96, (3, 3), 2, 'VALID'),
      ),
      _pooled(h, nn.max_pool, 2, 'VALID'),
    ], -1)  # fmt: skip

  def _mixed_6(self, h, block, channels):
    """Returns (the output of the block's 1x1 branch, the outputs of all branches concatenated)."""
    one = self._chain(h, block, ('branch1x1', 192, (1, 1)))
    return one, jnp.concatenate([
      one,
      self._chain(
        h, block, ('branch7x7_1', channels, (1, 1)), ('branch7x7_2', channels, (1, 7)),
        ('branch7x7_3', 192, (7, 1)),
      ),
      self._chain(
        h, block, ('branch7x7dbl_1', channels, (1, 1)), ('branch7x7dbl_2', channels, (7, 1)),
        ('branch7x7dbl_3', channels, (1, 7)), ('branch7x7dbl_4', channels, (7, 1)),
        ('branch7x7dbl_5', 192, (1, 7)),
      ),
      self._chain(_pooled(h, nn.avg_pool), block, ('branch_pool', 192, (1, 1))),
    ], -1)  # fmt: skip

  def _mixed_7a(self, h, block):
    return jnp.concatenate([
      self._chain(h, block, ('branch3x3_1', 192, (1, 1)), ('branch3x3_2', 320, (3, 3), 2, 'VALID')),
      self._chain(
        h, block, ('branch7x7x3_1', 192, (1, 1)), ('branch7x7x3_2', 192, (1, 7)),
        ('branch7x7x3_3', 192, (7, 1)), ('branch7x7x3_4', 192, (3, 3), 2, 'VALID'),
      ),
      _pooled(h, nn.max_pool, 2, 'VALID'),
    ], -1)  # fmt: skip

  def _mixed_7(self, h, block, pool):
    three = self._chain(h, block, ('branch3x3_1', 384, (1, 1)))
    double = self._chain(h, block, ('branch3x3dbl_1', 448, (1, 1)), ('branch3x3dbl_2', 384, (3, 3)))
    return jnp.concatenate([
      self._chain(h, block, ('branch1x1', 320, (1, 1))),
      self._chain(three, block, ('branch3x3_2a', 384, (1, 3))),
      self._chain(three, block, ('branch3x3_2b', 384, (3, 1))),
      self._chain(double, block, ('branch3x3dbl_3a', 384, (1, 3))),
      self._chain(double, block, ('branch3x3dbl_3b', 384, (3, 1))),
      self._chain(_pooled(h, pool), block, ('branch_pool', 192, (1, 1))),
    ], -1)  # fmt: skip


def _pooled(h, pool, strides=1, padding='SAME'):
  more = {} if pool is nn.max_pool else {'count_include_pad': False}
  return pool(h, (3, 3), (strides, strides), padding, **more)
