"""Counts of a program without a clock: products, FLOPs, activations kept, collectives."""

import dataclasses
import math
import re
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


_COLLECTIVE = re.compile(
  r'=\s+(?P<shape>\(.*?\)|\S+)\s+'
  r'(?P<kind>all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)'
  r'(?P<half>-start|-done)?\('
)
_SHAPE = re.compile(r'\b(?P<type>pred|[a-z]+\d+\w*)\[(?P<dims>[\d,]*)\]')
_COMPUTATION = re.compile(r'^(?:ENTRY\s+)?%?(?P<name>[\w.\-]+)\s.*\{\s*$')
_LOOP = re.compile(r'\b(?:body|condition)=%?([\w.\-]+)')
_CALL = re.compile(r'\b(?:calls|to_apply|\w+_computation)=%?([\w.\-]+)')


def collectives(hlo: str) -> list[dict]:
  """Returns [{'kind', 'leaves', 'bytes', 'loops'}], the collectives in the text of a program.

  A combined collective counts as one, with several leaves. `bytes` is the size of its results.
  `loops` is the number of while loops around the collective, which then runs more than once.
  """
  inside, callers, found = '', {}, []
  for line in hlo.splitlines():
    header = _COMPUTATION.match(line)
    if header:
      inside = header['name']
    callers.update(dict.fromkeys(_LOOP.findall(line), (inside, 1)))
    callers.update(dict.fromkeys(_CALL.findall(line), (inside, 0)))
    match = _COLLECTIVE.search(line)
    if match and match['half'] != '-done':
      leaves = _SHAPE.findall(match['shape'])
      if match['half'] and match['kind'] != 'all-reduce':
        # The shape lists (operands, results[, contexts]); that of an all-reduce lists results only.
        leaves = [leaf for leaf in leaves if leaf != ('u32', '')]
        leaves = leaves[len(leaves) // 2 :]
      found.append((inside, match['kind'], leaves))

  def loops(name):
    depth = 0
    while name in callers:
      name, more = callers[name]
      depth += more
    return depth

  return [
    {'kind': kind, 'leaves': len(leaves), 'bytes': sum(map(_bytes, leaves)), 'loops': loops(inside)}
    for inside, kind, leaves in found
  ]


def _bytes(leaf: tuple[str, str]) -> int:
  kind, dims = leaf
  width = 8 if kind == 'pred' else int(re.search(r'\d+', kind)[0])
  return max(1, width // 8) * math.prod(int(d) for d in dims.split(',') if d)
