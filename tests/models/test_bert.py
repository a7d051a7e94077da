"""BERT's encoder equals its equations in numpy; masked tokens have no influence."""

import math

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from gdistill.models import bert

SIZES = bert.Sizes(width=12, layers=2, heads=3, mlp=20, vocabulary=30, length=9)
TOKENS = np.random.default_rng(0).integers(0, 30, (3, 7))
MASK = np.arange(7)[None] < np.array([7, 4, 1])[:, None]


@pytest.fixture(scope='module')
def params():
  net = bert.Bert(SIZES)
  found = jax.eval_shape(net.init, jax.random.key(0), jnp.asarray(TOKENS), jnp.asarray(MASK))
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda a: rng.normal(a.ndim == 1, 0.4, a.shape).astype(np.float32), found['params']
  )


def hidden(params, tokens, mask):
  with jax.default_matmul_precision('highest'):
    return np.asarray(jax.jit(bert.Bert(SIZES).apply)({'params': params}, tokens, mask))


def norm(h, p):
  h = h - h.mean(-1, keepdims=True)
  return h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-12) * p['scale'] + p['bias']


def linear(h, p):
  return h @ p['kernel'] + p['bias']


def by_hand(p, tokens):
  """Returns hidden [L, width] of one sentence without padding; attention is computed by head."""
  erf = np.vectorize(math.erf)
  places = np.arange(len(tokens))
  h = p['word_embeddings'][tokens] + p['position_embeddings'][places]
  h = norm(h + p['token_type_embeddings'][0], p['LayerNorm'])
  for i in range(SIZES.layers):
    of = lambda name, i=i: p[f'layer_{i}_{name}']
    q, k, v = (linear(h, of(f'attention_self_{n}')) for n in ('query', 'key', 'value'))
    heads = []
    for part in np.split(np.arange(SIZES.width), SIZES.heads):
      weights = np.exp(q[:, part] @ k[:, part].T / np.sqrt(len(part)))
      heads.append(weights / weights.sum(1, keepdims=True) @ v[:, part])
    a = linear(np.concatenate(heads, 1), of('attention_output_dense'))
    h = norm(h + a, of('attention_output_LayerNorm'))
    a = linear(h, of('intermediate_dense'))
    a = linear(a * (1 + erf(a / np.sqrt(2))) / 2, of('output_dense'))
    h = norm(h + a, of('output_LayerNorm'))
  return h


def test_hidden_states_are_those_of_the_equations_and_padding_is_not_there(params):
  found = hidden(params, TOKENS, MASK)
  exact = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  for row, length in enumerate((7, 4, 1)):
    expected = by_hand(exact, TOKENS[row, :length])
    assert np.linalg.norm(found[row, :length] - expected) <= 1e-5 * np.linalg.norm(expected)


def test_rows_do_not_see_each_other_nor_what_is_masked(params):
  found = hidden(params, TOKENS, MASK)
  other = np.where(MASK, TOKENS, (TOKENS + 11) % 30)
  other[0] = other[0, ::-1]
  changed = hidden(params, other, MASK)
  np.testing.assert_allclose(changed[1:][MASK[1:]], found[1:][MASK[1:]], rtol=1e-5, atol=1e-6)
  assert np.abs(changed[0] - found[0]).max() > 0.1


def test_minilm_has_the_parameters_that_are_published():
  shape = jax.eval_shape(
    bert.Bert(bert.MINILM_L6).init,
    jax.random.key(0),
    jnp.zeros((1, 4), int),
    jnp.ones((1, 4), bool),
  )
  count = sum(math.prod(a.shape) for a in jax.tree.leaves(shape))
  assert count == 22_713_216 - 384 * 385  # published count of all-MiniLM-L6-v2, without its pooler
