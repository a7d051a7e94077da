"""Counts of a program without a clock: products, FLOPs, activations kept."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax


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
  """Returns every convolution and matrix product of the function's jaxpr, with its equation.

  The body of a loop counts once.
  """
  found = []
  for eqn in _equations(jax.make_jaxpr(function)(*args).jaxpr):
    kind = {'conv_general_dilated': 'conv', 'dot_general': 'dot'}.get(eqn.primitive.name)
    if kind is None:
      continue
    (lhs, rhs), out = (v.aval for v in eqn.invars), eqn.outvars[0].aval
    numbers = eqn.params['dimension_numbers']
    if kind == 'conv':
      names = (
        'window_strides', 'padding', 'lhs_dilation', 'rhs_dilation', 'dimension_numbers',
        'feature_group_count', 'batch_group_count',
      )  # fmt: skip
      terms = math.prod(rhs.shape[i] for i in numbers.rhs_spec[1:])
    else:
      names = ('dimension_numbers',)
      terms = math.prod(lhs.shape[i] for i in numbers[0][0])
    settings = tuple((name, eqn.params[name]) for name in names)
    flops = 2 * math.prod(out.shape) * terms
    one = Product(kind, lhs.shape, rhs.shape, out.shape, str(lhs.dtype), settings, flops)
    found.append((one, eqn))
  return found


def _equations(jaxpr: Any) -> list:
  """Returns the equations of a jaxpr and of every jaxpr inside it."""
  out = []
  for eqn in jaxpr.eqns:
    out.append(eqn)
    for value in eqn.params.values():
      for inner in value if isinstance(value, (tuple, list)) else (value,):
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          out += _equations(inner)
  return out


def forward_flops(function: Callable, *args: Any) -> int:
  """Returns the FLOPs of the convolutions and matrix products of a function."""
  return sum(product.flops for product, _ in products(function, *args))


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
