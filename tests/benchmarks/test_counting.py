"""Tests of counting collectives, products and activations, on programs counted by hand."""

import pathlib
import sys

import jax
import pytest
from jax import numpy as jnp

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / 'benchmarks'))
import counting

COMBINED = """
HloModule jit_step, entry_computation_layout={(f32[4]{0})->f32[4]{0}}

%r (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.3 = f32[] add(%a, %b)
}

ENTRY %main.9 (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %all-reduce.1 = (f32[3,3,2,5]{3,2,1,0}, f32[7]{0}, bf16[6]{0}, f32[]) all-reduce(%c), to_apply=%r
  %get-tuple-element.5 = f32[7]{0} get-tuple-element(%all-reduce.1), index=1
  ROOT %copy.1 = f32[4]{0} copy(%p), metadata={op_name="all-reduce(x)"}
}
"""

LOOP = """
%inner.1 (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %all-reduce.2 = f32[8]{0} all-reduce(%x), to_apply=%sum.1
}

%body.2 (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t = (s32[], f32[8]{0}) parameter(0)
  %call.1 = f32[8]{0} call(%y), to_apply=%inner.1
  ROOT %tuple.3 = (s32[], f32[8]{0}) tuple(%i, %call.1)
}

%condition.3 (t.1: (s32[], f32[8])) -> pred[] {
  ROOT %compare.1 = pred[] compare(%i, %n), direction=LT
}

ENTRY main.4 {
  %while.1 = (s32[], f32[8]{0}) while(%init), condition=%condition.3, body=%body.2
  %all-gather-start.1 = (f32[16]{0}, f32[128]{0:T(256)}) all-gather-start(%h), dimensions={0}
  %all-gather-done.1 = f32[128]{0} all-gather-done(%all-gather-start.1)
  %collective-permute-start.1 = (s8[4]{0}, s8[4]{0}, u32[], u32[]) collective-permute-start(%q)
  %all-reduce-start.1 = pred[2]{0} all-reduce-start(%r), to_apply=%or.1
  ROOT %reduce-scatter.1 = f32[2]{0} reduce-scatter(%h), dimensions={0}, to_apply=%sum.1
}
"""


def test_a_combined_all_reduce_is_one_of_several_leaves():
  (found,) = counting.collectives(COMBINED)
  # 90 + 7 + 1 elements of four bytes, and 6 of two bytes.
  assert found == {'kind': 'all-reduce', 'leaves': 4, 'bytes': 4 * 98 + 2 * 6, 'loops': 0}


def test_what_is_inside_a_loop_is_told_and_an_asynchronous_pair_counts_once_by_its_results():
  found = {c['kind']: c for c in counting.collectives(LOOP) if c['leaves'] and c['bytes'] != 2}
  assert found['all-reduce'] == {'kind': 'all-reduce', 'leaves': 1, 'bytes': 32, 'loops': 1}
  assert found['all-gather'] == {'kind': 'all-gather', 'leaves': 1, 'bytes': 512, 'loops': 0}
  assert found['collective-permute']['bytes'] == 4
  assert found['reduce-scatter']['bytes'] == 8
  assert [c['bytes'] for c in counting.collectives(LOOP)] == [32, 512, 4, 2, 8]


def test_a_program_for_one_device_has_no_collectives():
  text = jax.jit(lambda a: a @ a).lower(jnp.ones((2, 2))).compile().as_text()
  assert counting.collectives(text) == []


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
    # Products inside another function, and inside a loop, whose body counts once.
    (jax.jit(lambda a, b: jnp.tanh(a @ b)), ((2, 2), (2, 2)), 16),
    (lambda a, b: jax.lax.fori_loop(0, 9, lambda i, c: c @ b, a), ((2, 2), (2, 2)), 16),
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
