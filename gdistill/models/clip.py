"""CLIP's text tower and image tower; the text tower is also Stable Diffusion's text encoder.

Each tower is a pre-norm transformer: h + attention(norm(h)), then h + mlp(norm(h)). Flax modules
have the names of the published weights, with '_' in place of '.'. Source: Radford et al., arXiv
2103.00020.
"""

import dataclasses
import functools

import jax
from flax import linen as nn
from jax import numpy as jnp

from gdistill.models import attention

SIZE = 224
# Mean and standard deviation by which the published checkpoints normalise RGB in [0, 1].
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
ACTIVATIONS = {
  'quick_gelu': lambda x: x * nn.sigmoid(1.702 * x),
  'gelu': functools.partial(nn.gelu, approximate=False),
}


@dataclasses.dataclass(frozen=True)
class Tower:
  """Sizes of one tower of CLIP.

  `projection` is the width of the tower's output embedding; 0 means no projection layer.
  """

  width: int
  layers: int
  heads: int
  mlp: int
  activation: str = 'quick_gelu'
  projection: int = 0
  epsilon: float = 1e-5


@dataclasses.dataclass(frozen=True)
class Words:
  """Sizes of the text tower's input: size of the vocabulary, number of tokens in a text, and id of
  the end token.
  """

  vocabulary: int = 49408
  length: int = 77
  end: int = 49407  # a text's embedding is the hidden state at the first end token


TEXT_B32 = Tower(512, 12, 8, 2048, projection=512)
TEXT_L14 = Tower(768, 12, 12, 3072, projection=768)
IMAGE_B32 = Tower(768, 12, 12, 3072, projection=512)
IMAGE_L14 = Tower(1024, 24, 16, 4096, projection=768)


class Text(nn.Module):
  """Text tower: tokens [B, length] -> (hidden [B, length, width], embedding [B, projection]).

  `hidden` is taken after the last layer norm; Stable Diffusion's cross-attention reads `hidden`.
  `embedding` is the row of `hidden` at the first end token; a tower with a projection layer
  projects this row of `hidden`.
  """

  tower: Tower
  words: Words = Words()

  @nn.compact
  def __call__(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    tower, words = self.tower, self.words
    normal = nn.initializers.normal(0.02)
    table = self.param('token_embedding', normal, (words.vocabulary, tower.width))
    places = self.param('position_embedding', normal, (words.length, tower.width))
    length = tokens.shape[1]
    h = table[tokens] + places[None, :length]
    h = _transformer(tower, h, causal=True)
    h = nn.LayerNorm(tower.epsilon, name='final_layer_norm')(h)
    end = jnp.argmax(tokens == words.end, axis=1)
    summed = jnp.take_along_axis(h, end[:, None, None], axis=1)[:, 0]
    return h, _projected(tower, 'text_projection', summed)


class Image(nn.Module):
  """Image tower: normalised RGB [B, size, size, 3] -> embedding [B, projection]."""

  tower: Tower
  patch: int
  size: int = SIZE

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    tower = self.tower
    normal = nn.initializers.normal(0.02)
    patches = (self.patch, self.patch)
    h = nn.Conv(tower.width, patches, patches, use_bias=False, name='patch_embedding')(x)
    h = h.reshape(len(h), -1, tower.width)
    first = self.param('class_embedding', normal, (tower.width,))
    h = jnp.concatenate([jnp.broadcast_to(first, (len(h), 1, tower.width)), h], axis=1)
    count = (self.size // self.patch) ** 2 + 1
    places = self.param('position_embedding', normal, (count, tower.width))
    # 'pre_layrnorm' is misspelt because the published weights misspell this name.
    h = nn.LayerNorm(tower.epsilon, name='pre_layrnorm')(h + places[None])
    h = _transformer(tower, h, causal=False)
    h = nn.LayerNorm(tower.epsilon, name='post_layernorm')(h[:, 0])
    return _projected(tower, 'visual_projection', h)


def prepared(pixels: jax.Array, size: int = SIZE) -> jax.Array:
  """Returns pixels [B, H, W, 3] in 0..255 as the image tower's input [B, size, size, 3].

  Antialiased cubic resizing gives the shorter side `size` pixels; of the longer side, only the
  middle `size` pixels remain. The published preprocessing rounds pixels to whole numbers after
  resizing; this function does not round pixels.
  """
  b, height, width, _ = pixels.shape
  # The length of the longer side is rounded down, as in the published preprocessing.
  shape = tuple(max(size, side * size // min(height, width)) for side in (height, width))
  x = pixels.astype(jnp.float32) / 255.0
  if shape != (height, width):
    x = jax.image.resize(x, (b, *shape, 3), 'cubic', antialias=True, precision='highest')
    x = jnp.clip(x, 0.0, 1.0)
  top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
  x = x[:, top : top + size, left : left + size]
  return (x - jnp.array(MEAN)[None, None, None]) / jnp.array(STD)[None, None, None]


def _transformer(tower: Tower, h: jax.Array, causal: bool) -> jax.Array:
  b, length, width = h.shape
  for i in range(tower.layers):
    a = nn.LayerNorm(tower.epsilon, name=f'layers_{i}_layer_norm1')(h)
    q, k, v = (
      nn.Dense(width, name=f'layers_{i}_self_attn_{name}_proj')(a).reshape(
        b, length, tower.heads, width // tower.heads
      )
      for name in 'qkv'
    )
    a = attention.attention(q, k, v, causal=causal).reshape(b, length, width)
    h += nn.Dense(width, name=f'layers_{i}_self_attn_out_proj')(a)
    a = nn.LayerNorm(tower.epsilon, name=f'layers_{i}_layer_norm2')(h)
    a = ACTIVATIONS[tower.activation](nn.Dense(tower.mlp, name=f'layers_{i}_mlp_fc1')(a))
    h += nn.Dense(width, name=f'layers_{i}_mlp_fc2')(a)
  return h


def _projected(tower: Tower, name: str, h: jax.Array) -> jax.Array:
  return nn.Dense(tower.projection, use_bias=False, name=name)(h) if tower.projection else h
