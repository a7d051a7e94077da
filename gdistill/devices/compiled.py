"""Compiles a traced program for chips that are not here, and tells what the program needs."""

import collections
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from gdistill.devices import program
from gdistill.devices import topology as topologies


def figures(
  trace: Callable[[], jax.stages.Traced],
  chips: topologies.Topology,
  axes: Mapping[str, int],
  say: Callable[[str], None],
) -> dict[str, Any]:
  """Returns the figures of a compiled program, in plain JSON types.

  `axes` are the names and sizes of the mesh's axes. `say` is told each phase. FLOPs are those of
  convolutions and products of one device, also of products that the backward pass repeats. Raises
  what the compiler raises if it refuses the program.
  """
  seconds = {}

  def timed(phase, function):
    say(phase)
    began = time.monotonic()
    out = function()
    seconds[phase] = round(time.monotonic() - began, 1)
    return out

  traced = timed('tracing', trace)
  products = list(program.products(traced.jaxpr.jaxpr, 'tpu' if chips.is_tpu else 'cuda'))
  flops = sum(p.flops for p in program.products(traced.jaxpr.jaxpr))
  lowered = timed('lowering', traced.lower)
  del traced
  compiled = timed('compiling', lowered.compile)
  text = compiled.as_text()
  return {
    'seconds': seconds,
    'memory': _memory(compiled),
    'flops': flops,
    'bytes': _bytes_accessed(compiled),
    'collectives': _summed(program.collectives(text, axes)),
    'largest': program.largest(text),
    'products': _by_dtype(products),
    'float32': _places(products),
    'donated': program.donated(text),
    'callbacks': program.callbacks(text),
  }


def _memory(compiled: Any) -> dict[str, int]:
  """Returns a device's bytes: the arguments, what results do not take over of them, temporaries."""
  m = compiled.memory_analysis()
  return {
    'arguments': m.argument_size_in_bytes,
    'results': m.output_size_in_bytes - m.alias_size_in_bytes,
    'temporaries': m.temp_size_in_bytes,
    'program': m.generated_code_size_in_bytes,
  }


def _bytes_accessed(compiled: Any) -> float | None:
  """Returns XLA's count of the bytes that a call moves, or None where XLA does not count them.

  Values that stay in on-chip memory are counted too.
  """
  cost = compiled.cost_analysis()
  cost = cost[0] if isinstance(cost, list) else cost
  return (cost or {}).get('bytes accessed')


def _summed(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Returns the collectives of each kind and axis as one entry: their number, leaves and bytes."""
  totals: dict[tuple, collections.Counter] = {}
  for one in found:
    entry = totals.setdefault((one['kind'], one['axis']), collections.Counter())
    entry.update(count=1, leaves=one['leaves'], bytes=one['bytes'])
  return [{'kind': kind, 'axis': axis, **entry} for (kind, axis), entry in sorted(totals.items())]


def _by_dtype(products: Sequence[program.Product]) -> dict[str, int]:
  """Returns {dtypes of the operands: number of products}, as 'bfloat16' or 'float32 x bfloat16'."""
  names = (' x '.join(dict.fromkeys(sorted(p.dtypes, reverse=True))) for p in products)
  return dict(collections.Counter(names))


def _places(products: Sequence[program.Product]) -> list[str]:
  """Returns the modules with a product in which an operand is float32."""
  return sorted({p.where for p in products if 'float32' in p.dtypes})
