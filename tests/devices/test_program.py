"""Tests of what is read from programs: products of a jaxpr, and a compiled program's text."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from gdistill.devices import program

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
  (found,) = program.collectives(COMBINED)
  # 90 + 7 + 1 elements of four bytes, and 6 of two bytes.
  assert found == {
    'kind': 'all-reduce',
    'leaves': 4,
    'bytes': 4 * 98 + 2 * 6,
    'loops': 0,
    'axis': '',
  }


def test_what_is_inside_a_loop_is_told_and_an_asynchronous_pair_counts_once_by_its_results():
  found = {c['kind']: c for c in program.collectives(LOOP) if c['leaves'] and c['bytes'] != 2}
  assert found['all-reduce'] == {
    'kind': 'all-reduce',
    'leaves': 1,
    'bytes': 32,
    'loops': 1,
    'axis': '',
  }
  assert found['all-gather'] == {
    'kind': 'all-gather',
    'leaves': 1,
    'bytes': 512,
    'loops': 0,
    'axis': '',
  }
  assert found['collective-permute']['bytes'] == 4
  assert found['reduce-scatter']['bytes'] == 8
  assert [c['bytes'] for c in program.collectives(LOOP)] == [32, 512, 4, 2, 8]


def test_a_program_for_one_device_has_no_collectives():
  text = jax.jit(lambda a: a @ a).lower(jnp.ones((2, 2))).compile().as_text()
  assert program.collectives(text) == []


def jaxpr_of(function, *args):
  return jax.make_jaxpr(function)(*args).jaxpr


def test_products_count_as_often_as_they_run():
  a = jnp.ones((8, 16), jnp.bfloat16)
  b = jnp.ones((16, 16), jnp.bfloat16)

  def function(a, b):
    a, _ = jax.lax.scan(lambda a, _: (a @ b, None), a, None, length=5)
    return a @ b.astype(jnp.float32)

  found = list(program.products(jaxpr_of(function, a, b)))
  assert sum(p.flops for p in found) == 6 * 2 * 8 * 16 * 16
  assert [p.dtypes for p in found] == [('bfloat16', 'bfloat16'), ('bfloat16', 'float32')]


def test_a_convolution_has_two_flops_per_multiply_add():
  x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))

  def conv(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )

  (found,) = program.products(jaxpr_of(conv, x, kernel))
  assert found.flops == 2 * (2 * 8 * 8 * 5) * (3 * 3 * 3)


def test_a_platform_has_its_own_products():
  a = jnp.ones((4, 4))

  def function(a):
    return jax.lax.platform_dependent(a, tpu=lambda a: a @ a @ a, default=lambda a: a @ a)

  jaxpr = jaxpr_of(function, a)
  assert len(list(program.products(jaxpr, 'tpu'))) == 2
  assert len(list(program.products(jaxpr, 'cuda'))) == len(list(program.products(jaxpr))) == 1


@pytest.mark.parametrize(
  'text, axis',
  [
    ('{{0,1},{2,3},{4,5},{6,7}}', 'fsdp'),
    ('[4,2]<=[8]', 'fsdp'),
    ('{{0,2},{1,3},{4,6},{5,7}}', 'data'),
    ('[4,2]<=[2,2,2]T(0,2,1)', 'data'),
    ('[2,4]<=[8]', 'data, fsdp'),
    ('[1,8]<=[8]', 'slice, data, fsdp'),
    ('[2,4]<=[2,2,2]T(1,0,2)', 'slice, fsdp'),
    ("mesh['axis_0'=4,'axis_1'=2] {'axis_1'}", 'fsdp'),
    ("mesh['axis_0'=2,'axis_1'=2,'axis_2'=2] {'axis_0','axis_2'}", 'slice, fsdp'),
    ("mesh['axis_0'=8,'axis_1'=1] {'axis_0'}", 'slice, data, fsdp'),
    ('{{0,3},{1,2},{4,7},{5,6}}', ''),
  ],
)
def test_groups_are_named_by_the_axes_of_the_mesh(text, axis):
  line = f'  %a = f32[64]{{0}} all-reduce(f32[64]{{0}} %b), replica_groups={text}, to_apply=%sum'
  (found,) = program.collectives(line, {'slice': 2, 'data': 2, 'fsdp': 2})
  assert found['axis'] == axis and found['bytes'] == 256


def test_a_fused_scatter_is_told_from_a_whole_reduction():
  text = """
%all-reduce-scatter.1 (p: f32[64]) -> f32[8] {
  %r = f32[64]{0} all-reduce(f32[64]{0} %p), replica_groups=[1,8]<=[8], to_apply=%sum
  ROOT %d = f32[8]{0} dynamic-slice(%r, %i), dynamic_slice_sizes={8}
}
ENTRY %main (a: f32[64]) -> f32[8] {
  ROOT %f = f32[8]{0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
}"""
  (found,) = program.collectives(text, {'slice': 1, 'data': 8, 'fsdp': 1})
  assert (found['kind'], found['bytes'], found['axis']) == ('reduce-scatter', 32, 'data')


def test_the_largest_values_are_named_by_their_modules():
  text = """
HloModule jit_step
%fused (p: f32[999]) -> f32[999] {
  ROOT %n = f32[999999]{0} negate(%p), metadata={op_name="jit(step)/inside"}
}
ENTRY %main (a: f32[64]) -> f32[8] {
  %a = f32[77777]{0} parameter(0), metadata={op_name="state"}
  %f = bf16[1000,8]{1,0:T(8,128)(2,1)} fusion(%a), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/jvp(UNet)/mid/add"}
  %v = f32[50000]{0:T(256)S(1)} copy(%f), metadata={op_name="jit(step)/in_vmem"}
  ROOT %d = (f32[100]{0}, f32[3000]{0}) custom-call(%f), metadata={op_name="jit(step)/transpose(jvp(UNet))/out/dot"}
}"""  # noqa: E501
  assert program.largest(text, 2) == [
    {'bytes': 16000, 'shape': 'bf16[1000,8]', 'where': 'UNet/mid/add'},
    {'bytes': 12000, 'shape': 'f32[3000]', 'where': 'UNet/out/dot (backward)'},
  ]


def test_donated_arrays_and_callbacks_of_a_compiled_program():
  def step(state, x):
    return {k: v + x for k, v in state.items()}, x.sum()

  state = {'a': jnp.ones(4), 'b': jnp.ones(4)}
  compiled = jax.jit(step, donate_argnums=0).lower(state, jnp.ones(4)).compile()
  assert program.donated(compiled.as_text()) == 2 and program.callbacks(compiled.as_text()) == 0
  kept = jax.jit(step).lower(state, jnp.ones(4)).compile()
  assert program.donated(kept.as_text()) == 0
  shape = jax.ShapeDtypeStruct((4,), np.float32)
  asks = jax.jit(lambda x: jax.pure_callback(lambda x: x, shape, x)).lower(jnp.ones(4)).compile()
  assert program.callbacks(asks.as_text()) >= 1
