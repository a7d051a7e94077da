"""Tests of counting products and activations, on programs counted by hand."""

import pathlib
import sys

import jax
import pytest
from jax import numpy as jnp

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / 'benchmarks'))
import counting

from gdistill.models import attention


def conv(x, kernel, **more):
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'), **more
  )


@pytest.mark.parametrize(
  ('function', 'shapes', 'flops'),
  [
    (lambda a, b: a @ b, ((2, 3), (3, 5)), 2 * 2 * 3 * 5),
    (conv, ((2, 4, 4, 3), (3, 3, 3, 5)), 2 * (2 * 4 * 4 * 5) * (3 * 3 * 3)),
    # Each output channel sees only its own group of input channels.
    (
      lambda x, k: conv(x, k, feature_group_count=2),
      ((1, 4, 4, 6), (3, 3, 3, 8)),
      2 * (4 * 4 * 8) * (3 * 3 * 3),
    ),
    (lambda a, b: jnp.einsum('bqd,bkd->bqk', a, b), ((2, 3, 4), (2, 5, 4)), 2 * 2 * 3 * 5 * 4),
    # Products inside another function, and inside a loop, which runs nine times.
    (jax.jit(lambda a, b: jnp.tanh(a @ b)), ((2, 2), (2, 2)), 16),
    (lambda a, b: jax.lax.fori_loop(0, 9, lambda i, c: c @ b, a), ((2, 2), (2, 2)), 9 * 16),
    # One of the forms of attention counts, and blocks of queries count all together.
    (lambda q, k: attention.attention(q, k, k), 2 * ((1, 256, 2, 8),), 2**3 * 256**2 * 8),
    (lambda q, k: attention.attention(q, k, k), 2 * ((8, 2048, 2, 8),), 2**6 * 2048**2 * 8),
  ],
)  # fmt: skip
def test_flops_of_products_by_hand(function, shapes, flops):
  assert counting.forward_flops(function, *map(jnp.ones, shapes)) == flops


def test_equal_products_are_equal_and_others_are_not():
  def function(x, k):
    return conv(conv(x, k), k) + conv(x, jnp.ones((1, 1, 2, 2)))

  found = [
    p for p, _ in counting.products(function, jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2)))
  ]
  assert len(found) == 3 and len(set(found)) == 2
  assert found[0].name == 'conv 1x4x4x2 * 3x3x2x2 -> 1x4x4x2 float32'


def test_the_activation_floor_is_the_inputs_of_the_products():
  def network(params, x):
    h = jnp.tanh(conv(x, params['conv']))  # x: 2 x 4 x 4 x 3
    q, k = h @ params['q'], h @ params['k']  # h counts once for q and k: 2 x 4 x 4 x 5
    scores = jnp.einsum('bhwc,bhwd->bcd', q, k)  # q and k: 2 x 4 x 4 x 6 each
    return jnp.sum(jnp.exp(scores))

  params = {'conv': jnp.ones((3, 3, 3, 5)), 'q': jnp.ones((5, 6)), 'k': jnp.ones((5, 6))}
  floor = counting.activation_floor(network, params, jnp.ones((2, 4, 4, 3)))
  assert floor == 4 * 32 * (3 + 5 + 6 + 6)


def test_the_activation_floor_is_as_wide_as_what_is_kept():
  def network(kernel, x):
    return jnp.sum((x.astype(jnp.bfloat16) @ kernel.astype(jnp.bfloat16)).astype(jnp.float32))

  assert counting.activation_floor(network, jnp.ones((3, 2)), jnp.ones((7, 3))) == 2 * 7 * 3
