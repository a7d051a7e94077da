"""BERT, for example MiniLM: encodes short prompts for text-conditional networks.

A layer of BERT is post-norm: h = norm(h + attention(h)), then h = norm(h + mlp(h)). Flax modules
have the names of the published weights, with '_' in place of '.'. Source: Devlin et al., arXiv
1810.04805.
"""

import dataclasses

import jax
from flax import linen as nn

from gdistill.models import attention
from gdistill.models import clip


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Sizes of a BERT network: its layers, and its tables of word, position and token-type
  embeddings.
  """

  width: int
  layers: int
  heads: int
  mlp: int
  vocabulary: int = 30522
  length: int = 512
  sentences: int = 2
  activation: str = 'gelu'
  epsilon: float = 1e-12


MINILM_L6 = Sizes(384, 6, 12, 1536)


class Bert(nn.Module):
  """BERT: tokens [B, L], mask [B, L] bool -> hidden [B, L, width].

  No token attends to tokens whose mask is False; outputs at tokens whose mask is False are
  meaningless. All tokens get the token-type embedding of the first sentence.
  """

  sizes: Sizes

  @nn.compact
  def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    sizes = self.sizes
    words, places, sentences = (
      self.param(name, nn.initializers.normal(0.02), (rows, sizes.width))
      for name, rows in (
        ('word_embeddings', sizes.vocabulary),
        ('position_embeddings', sizes.length),
        ('token_type_embeddings', sizes.sentences),
      )
    )
    h = words[tokens] + (places[: tokens.shape[1]] + sentences[:1])[None]
    h = nn.LayerNorm(sizes.epsilon, name='LayerNorm')(h)
    for i in range(sizes.layers):
      h = self._layer(f'layer_{i}', h, mask)
    return h

  def _layer(self, name: str, h: jax.Array, mask: jax.Array) -> jax.Array:
    sizes = self.sizes
    b, length, width = h.shape
    q, k, v = (
      nn.Dense(width, name=f'{name}_attention_self_{part}')(h).reshape(
        b, length, sizes.heads, width // sizes.heads
      )
      for part in ('query', 'key', 'value')
    )
    a = attention.attention(q, k, v, mask)
    a = nn.Dense(width, name=f'{name}_attention_output_dense')(a.reshape(b, length, width))
    h = nn.LayerNorm(sizes.epsilon, name=f'{name}_attention_output_LayerNorm')(h + a)
    a = nn.Dense(sizes.mlp, name=f'{name}_intermediate_dense')(h)
    a = nn.Dense(width, name=f'{name}_output_dense')(clip.ACTIVATIONS[sizes.activation](a))
    return nn.LayerNorm(sizes.epsilon, name=f'{name}_output_LayerNorm')(h + a)
