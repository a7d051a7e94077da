"""EfficientNet-Lite0, an ImageNet classifier whose weights are installable as a Python package.

The network has inverted residuals without squeeze-and-excitation, and ReLU6 activations; batch
norms are folded into the convolutions (convert.folding). A Fréchet distance of EfficientNet-Lite0's
features is called FD-lite0, never FID. Source: Tan and Le, arXiv 1905.11946; the Lite variants are
by the authors of EfficientNet.
"""

import jax
from flax import linen as nn
from jax import numpy as jnp

SIZE = 224
FEATURE_SIZE, NUM_CLASSES = 1280, 1000
BATCH_NORM_EPSILON = 1e-3
MEAN, STD = 127.0, 128.0  # the Lite variants were trained on (pixels - MEAN) / STD, pixels 0..255

# Stages of the network: (repeats, kernel, stride of the first repeat, expansion, output channels).
_STAGES = (
  (1, 3, 1, 1, 16),
  (2, 3, 2, 6, 24),
  (2, 5, 2, 6, 40),
  (3, 3, 2, 6, 80),
  (3, 5, 1, 6, 112),
  (4, 5, 2, 6, 192),
  (1, 3, 1, 6, 320),
)


def prepared(pixels: jax.Array, size: int = SIZE) -> jax.Array:
  """Returns pixels [B, H, W, 3] in 0..255 as the network's input [B, size, size, 3].

  Small pictures are enlarged bilinearly with half-pixel centres. Large pictures are reduced with a
  triangle filter that is widened by the factor of the reduction.
  """
  x = (pixels.astype(jnp.float32) - MEAN) / STD
  shape = (len(x), size, size, 3)
  return jax.image.resize(x, shape, 'linear', antialias=True, precision='highest')


class Depthwise(nn.Module):
  """Depthwise convolution with TensorFlow's SAME padding, computed as a sum over the kernel's
  positions of shifted inputs times weights.

  On a CPU, EfficientNet-Lite0 runs four times as fast with this layer as with XLA's grouped
  convolution, which is slow on CPUs.
  """

  size: int
  stride: int

  @nn.compact
  def __call__(self, h: jax.Array) -> jax.Array:
    channels = h.shape[-1]
    shape = (self.size, self.size, 1, channels)
    kernel = self.param('kernel', nn.initializers.lecun_normal(), shape)
    bias = self.param('bias', nn.initializers.zeros_init(), (channels,))
    outs = [-(-side // self.stride) for side in h.shape[1:3]]
    spans = [(out - 1) * self.stride + 1 for out in outs]
    gaps = [max(s + self.size - 1 - side, 0) for s, side in zip(spans, h.shape[1:3], strict=True)]
    h = jnp.pad(h, [(0, 0), *((gap // 2, gap - gap // 2) for gap in gaps), (0, 0)])
    y = jnp.broadcast_to(bias[None, None, None], (len(h), *outs, channels))
    for i in range(self.size):
      for j in range(self.size):
        rows, columns = (slice(k, k + s, self.stride) for k, s in zip((i, j), spans, strict=True))
        y = y + h[:, rows, columns] * kernel[None, None, i, j]
    return y


class EfficientNetLite0(nn.Module):
  """Images [B, H, W, 3] -> {'features': pixel means [B, 1280], 'logits': of ImageNet [B, 1000]}."""

  precision: str = 'highest'

  @nn.compact
  def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
    def conv(h, name, channels, kernel=1, stride=1):
      return nn.Conv(
        channels, (kernel, kernel), stride, padding='SAME', precision=self.precision, name=name
      )(h)

    h = jax.nn.relu6(conv(x, 'stem', 32, 3, 2))
    index = 0
    for repeats, kernel, first_stride, expansion, channels in _STAGES:
      for repeat in range(repeats):
        stride, before, name = first_stride if repeat == 0 else 1, h, f'block_{index}'
        wide = h.shape[-1] * expansion
        if expansion != 1:
          h = jax.nn.relu6(conv(h, f'{name}_expand', wide))
        h = jax.nn.relu6(Depthwise(kernel, stride, name=f'{name}_depthwise')(h))
        h = conv(h, f'{name}_project', channels)
        if h.shape == before.shape and stride == 1:
          h += before
        index += 1
    features = jax.nn.relu6(conv(h, 'head', FEATURE_SIZE)).mean((1, 2))
    logits = nn.Dense(NUM_CLASSES, precision=self.precision, name='logits')(features)
    return {'features': features, 'logits': logits}
