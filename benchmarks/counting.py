"""Counts of a program without a clock: products, FLOPs, activations kept."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from gdistill.devices import program


@dataclasses.dataclass(frozen=True)
class Product:
  """A convolution or a matrix product, by its shapes, dtype and settings."""

  kind: str  # 'conv' or 'dot'
  lhs: tuple[int, ...]
  rhs: tuple[int, ...]
  out: tuple[int, ...]
  dtype: str
  settings: tuple[tuple[str, Any], ...]
  flops: int  # two per multiply-add, including multiply-adds with padding

  @property
  def name(self) -> str:
    lhs, rhs, out = ('x'.join(map(str, shape)) for shape in (self.lhs, self.rhs, self.out))
    return f'{self.kind} {lhs} * {rhs} -> {out} {self.dtype}'


def products(function: Callable, *args: Any) -> list[tuple[Product, Any]]:
  """Returns every convolution and matrix product of the function's jaxpr, with its equation."""
  found = []
  for p in program.products(jax.make_jaxpr(function)(*args).jaxpr):
    kind = {'conv_general_dilated': 'conv', 'dot_general': 'dot'}[p.eqn.primitive.name]
    names = ('dimension_numbers',)
    if kind == 'conv':
      names = (
        'window_strides', 'padding', 'lhs_dilation', 'rhs_dilation', 'dimension_numbers',
        'feature_group_count', 'batch_group_count',
      )  # fmt: skip
    lhs, rhs, out = (v.aval for v in (*p.eqn.invars, *p.eqn.outvars))
    settings = tuple((name, p.eqn.params[name]) for name in names)
    flops = p.flops // p.times  # of one run
    one = Product(kind, lhs.shape, rhs.shape, out.shape, str(lhs.dtype), settings, flops)
    found.append((one, p.eqn))
  return found


def forward_flops(function: Callable, *args: Any) -> int:
  """Returns the FLOPs of the convolutions and matrix products of a function.

  The body of a scan counts as often as the scan runs it.
  """
  return sum(p.flops for p in program.products(jax.make_jaxpr(function)(*args).jaxpr))


def activation_floor(function: Callable, *args: Any) -> int:
  """Returns the bytes of activations that the backward pass of a network must keep.

  The gradient of a weight needs the input of its convolution or matrix product, in the dtype of
  the product; the gradient of a product of two activations, as in attention, needs both. Values
  between the products (norms, activation functions, sums) can be recomputed elementwise, without
  another product, so they need not be kept. An input that several layers share counts once.
  """
  kept = {}
  for product, eqn in products(function, *args):
    of_activations = product.kind == 'dot' and any(product.settings[0][1][1])
    for v in eqn.invars if of_activations else eqn.invars[:1]:
      kept[v] = math.prod(v.aval.shape) * v.aval.dtype.itemsize
  return sum(kept.values())


def compiled_flops(compiled: Any) -> float:
  """Returns XLA's FLOPs of a compiled program, with elementwise work; a loop body counts once."""
  analysis = compiled.cost_analysis()
  return (analysis[0] if isinstance(analysis, list) else analysis)['flops']
