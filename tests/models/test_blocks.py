"""The U-Nets' blocks equal their formulas in numpy."""

import jax
import numpy as np
from jax import numpy as jnp

from gdistill.models import blocks


def test_the_norm_is_its_formula_with_scale_and_shift():
  rng = np.random.default_rng(0)
  h, gamma, beta = rng.normal(size=(2, 3, 5, 6)) + 2.0, rng.normal(size=6), rng.normal(size=6)
  scale, shift = rng.normal(size=(2, 6)), rng.normal(size=(2, 6))
  x = h.reshape(2, 15, 2, 3)
  normed = (x - x.mean((1, 3), keepdims=True)) / np.sqrt(x.var((1, 3), keepdims=True) + 1e-6)
  plain = gamma * normed.reshape(h.shape) + beta
  conditioned = (1 + scale[:, None, None]) * plain + shift[:, None, None]
  norm, params = (
    blocks.Norm(2),
    {'params': {'scale': jnp.float32(gamma), 'bias': jnp.float32(beta)}},
  )
  h, scale, shift = (jnp.float32(a) for a in (h, scale, shift))
  np.testing.assert_allclose(norm.apply(params, h), plain, atol=2e-5)
  np.testing.assert_allclose(norm.apply(params, h, scale, shift), conditioned, atol=5e-5)


def test_group_statistics_are_float32_whatever_comes_in():
  norm = blocks.Norm(2)
  h = (10.0 + jax.random.normal(jax.random.key(0), (2, 4, 4, 4))).astype(jnp.bfloat16)
  found = norm.apply(norm.init(jax.random.key(0), h), h)
  assert found.dtype == jnp.float32
  x = np.asarray(h, np.float64).reshape(2, 16, 2, 2)
  expected = (x - x.mean((1, 3), keepdims=True)) / np.sqrt(x.var((1, 3), keepdims=True) + 1e-6)
  np.testing.assert_allclose(found, expected.reshape(h.shape), atol=2e-3)


def test_dropout_belongs_to_the_example_and_not_to_its_place():
  h = jnp.ones((4, 3, 3, 50))
  drop, key = blocks.Dropout(0.3), {'dropout': jax.random.key(5)}
  found = drop.apply({}, h, np.array([7, 3, 9, 3]), rngs=key)
  np.testing.assert_array_equal(found[1], found[3])
  assert (found[0] != found[1]).any()
  np.testing.assert_array_equal(found[2:3], drop.apply({}, h[:1], np.array([9]), rngs=key))
  np.testing.assert_allclose(np.unique(found), [0.0, 1 / 0.7], rtol=1e-6)
  np.testing.assert_allclose(np.mean(found), 1.0, atol=0.05)  # 6 standard deviations of 1,350 draws


def test_attention_is_softmax_over_all_pixels_by_head():
  layer = blocks.Attention(heads=2, groups=4)
  h = jax.random.normal(jax.random.key(0), (2, 2, 3, 8))
  shapes = jax.eval_shape(layer.init, jax.random.key(0), h)['params']
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda a: np.asarray(rng.normal(size=a.shape), np.float32), shapes)
  x = np.asarray(blocks.Norm(4).apply({'params': params['norm']}, h)).reshape(2, 6, 8)
  q, k, v = (x @ params[n]['kernel'] + params[n].get('bias', 0.0) for n in 'qkv')
  out = np.zeros_like(x)
  for head in (slice(0, 4), slice(4, 8)):
    scores = q[..., head] @ k[..., head].swapaxes(1, 2) / 2.0
    p = np.exp(scores - scores.max(-1, keepdims=True))
    out[..., head] = p / p.sum(-1, keepdims=True) @ v[..., head]
  expected = h + (out @ params['out']['kernel'] + params['out']['bias']).reshape(h.shape)
  np.testing.assert_allclose(layer.apply({'params': params}, h), expected, atol=2e-4)


def test_resampling_means_and_repeats():
  h = jnp.arange(16.0).reshape(1, 4, 4, 1)
  down = blocks.resampled(h, 'down')
  np.testing.assert_allclose(down[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])
  up = blocks.resampled(down, 'up')
  np.testing.assert_allclose(up[0, :2, :2, 0], 2.5)
  np.testing.assert_allclose(up[0, 2:, 2:, 0], 12.5)
