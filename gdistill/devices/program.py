"""Reads what a program does: its products, its collectives and its largest values."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Product:
  """A convolution or matrix product of a jaxpr, and how often it runs in one call."""

  eqn: Any
  times: int
  flops: int  # of all runs together; two per multiply-add, including those with padding
  where: str  # the Flax modules around it

  @property
  def dtypes(self) -> tuple[str, str]:
    """Returns the dtypes of the two operands."""
    lhs, rhs = (str(v.aval.dtype) for v in self.eqn.invars)
    return lhs, rhs


def products(jaxpr: Any, platform: str | None = None, times: int = 1) -> Iterator[Product]:
  """Yields every convolution and matrix product of a jaxpr and of the jaxprs inside it.

  The body of a scan counts as often as the scan runs it, the body of a while loop once. Where a
  program differs between platforms, only the part for `platform` counts; None takes the part for
  all platforms that have none of their own. The products inside a Pallas kernel are not seen.
  """
  for eqn in jaxpr.eqns:
    kind = eqn.primitive.name
    if kind in ('conv_general_dilated', 'dot_general'):
      yield Product(eqn, times, times * _flops(eqn), _modules(str(eqn.source_info.name_stack)))
    elif kind == 'cond':
      yield from _of_branches(eqn, platform, times)
    elif kind != 'pallas_call':
      inner = times * (eqn.params['length'] if kind == 'scan' else 1)
      for value in eqn.params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
          part = getattr(part, 'jaxpr', part)
          if hasattr(part, 'eqns'):
            yield from products(part, platform, inner)


def _of_branches(eqn: Any, platform: str | None, times: int) -> Sequence[Product]:
  """Returns the products of the branch for `platform`, or of the branch with the most FLOPs."""
  branches = [b.jaxpr for b in eqn.params['branches']]
  platforms = eqn.params.get('branches_platforms')
  if platforms:
    own = next((b for b, p in zip(branches, platforms, strict=True) if platform in (p or ())), None)
    branches = [branches[-1] if own is None else own]
  found = [list(products(b, platform, times)) for b in branches]
  return max(found, key=lambda part: sum(p.flops for p in part))


def _flops(eqn: Any) -> int:
  lhs, rhs = (v.aval.shape for v in eqn.invars)
  numbers = eqn.params['dimension_numbers']
  if eqn.primitive.name == 'dot_general':
    terms = math.prod(lhs[i] for i in numbers[0][0])
  else:
    terms = math.prod(rhs[i] for i in numbers.rhs_spec[1:])
  return 2 * math.prod(eqn.outvars[0].aval.shape) * terms


# Parts of an operation's name that are no modules.
_AROUND = {
  'body',
  'checkpoint',
  'closed_call',
  'rematted_computation',
  'shard_map',
  'step',
  'while',
}
_WRAPPED = re.compile(r'\b\w+\(([^()]*)\)')


def _modules(name: str) -> str:
  """Returns the modules and the operation in the name of an operation, as 'UNet/out/dot_general'.

  JAX writes 'jit(step)/transpose(jvp(UNet))/out/dot_general'.
  """
  while _WRAPPED.search(name):
    name = _WRAPPED.sub(r'\1', name)
  return '/'.join(p for p in name.split('/') if p and p not in _AROUND)


_COLLECTIVE = re.compile(
  r'=\s+(?P<shape>\(.*?\)|\S+)\s+'
  r'(?P<kind>all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)'
  r'(?P<half>-start|-done)?\('
)
_SHAPE = re.compile(r'\b(?P<type>pred|[a-z]+\d+\w*)\[(?P<dims>[\d,]*)\]')
_COMPUTATION = re.compile(r'^(?:ENTRY\s+)?%?(?P<name>[\w.\-]+)\s.*\{\s*$')
_LOOP = re.compile(r'\b(?:body|condition)=%?([\w.\-]+)')
_CALL = re.compile(r'\b(?:calls|to_apply|\w+_computation)=%?([\w.\-]+)')
_GROUPS = re.compile(
  r'replica_groups=(\{\{.*?\}\}|\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?|mesh\[[^\]]*\] \{[^}]*\})'
)


def collectives(hlo: str, axes: Mapping[str, int] | None = None) -> list[dict]:
  """Returns [{'kind', 'leaves', 'bytes', 'loops', 'axis'}], the collectives in a program's text.

  A combined collective counts as one, with several leaves. `bytes` is the size of its results.
  `loops` is the number of while loops around the collective, which then runs more than once.
  `axis` names the axes of the mesh `axes`, {name: size} in the order of its devices, over which it
  goes: 'data', or 'data, fsdp'; '' if these are unknown. The all-reduce of which every device keeps
  its own part, which libtpu fuses, is a reduce-scatter.
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
      groups = _GROUPS.search(line)
      axis = _axis(groups[1], axes) if groups and axes else ''
      found.append((inside, match['kind'], leaves, axis))

  def loops(name):
    depth = 0
    while name in callers:
      name, more = callers[name]
      depth += more
    return depth

  out = []
  for inside, kind, leaves, axis in found:
    size = sum(map(_bytes, leaves))
    if kind == 'all-reduce' and 'all-reduce-scatter' in inside:
      kind = 'reduce-scatter'
      size //= math.prod((axes or {}).get(a, 1) for a in axis.split(', '))
    out.append(
      {'kind': kind, 'leaves': len(leaves), 'bytes': size, 'loops': loops(inside), 'axis': axis}
    )
  return out


def _bytes(leaf: tuple[str, str]) -> int:
  kind, dims = leaf
  width = 8 if kind == 'pred' else int(re.search(r'\d+', kind)[0])
  return max(1, width // 8) * math.prod(int(d) for d in dims.split(',') if d)


def _axis(text: str, axes: Mapping[str, int]) -> str:
  """Returns the names of the axes over which the devices of each group differ."""
  found = {frozenset(g) for g in _groups(text)}
  names = [name for name, size in axes.items() if size > 1]
  ids = np.arange(math.prod(axes.values())).reshape([axes[n] for n in names])
  for count in range(1, len(names) + 1):
    for chosen in itertools.combinations(range(len(names)), count):
      last = range(len(names) - count, len(names))
      rows = np.moveaxis(ids, chosen, last).reshape(-1, math.prod(ids.shape[i] for i in chosen))
      if {frozenset(row) for row in rows.tolist()} == found:
        return ', '.join(names[i] for i in chosen)
  return ''


def _groups(text: str) -> list[list[int]]:
  """Returns the groups of device numbers for which one of XLA's texts stands.

  The texts are '{{0,1},{2,3}}', '[2,2]<=[4]T(0)' and "mesh['a'=2,'b'=2] {'b'}".
  """
  if text.startswith('mesh'):
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", text)}
    chosen = re.findall(r"'(\w+)'", text[text.index('{') :])
    ids = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
    where = [list(sizes).index(name) for name in chosen]
    count = math.prod(sizes[name] for name in chosen)
    return np.moveaxis(ids, where, range(-len(where), 0)).reshape(-1, count).tolist()
  if text.startswith('{'):
    return [[int(n) for n in g.split(',') if n] for g in re.findall(r'\{([\d,]*)\}', text[1:-1])]
  shape, source, order = re.fullmatch(r'\[(.*?)\]<=\[(.*?)\](?:T\((.*?)\))?', text).groups()
  numbers = [[int(n) for n in part.split(',')] if part else None for part in (shape, source, order)]
  ids = np.arange(math.prod(numbers[1])).reshape(numbers[1])
  return ids.transpose(numbers[2]).reshape(numbers[0]).tolist()


_VALUE = re.compile(
  r'^\s+(?:ROOT )?%?[\w.\-]+ = (?P<shape>\(.*?\)|\S+) (?P<op>[\w\-]+)\(.*?'
  r'(?:metadata=\{.*?op_name="(?P<name>[^"]*)")'
)
_NO_VALUES = {
  'parameter',
  'get-tuple-element',
  'tuple',
  'bitcast',
  'constant',
  'while',
  'copy-done',
}


def largest(hlo: str, count: int = 5) -> list[dict]:
  """Returns [{'bytes', 'where', 'operation'}], the largest values that a compiled program makes.

  The values inside a fusion, and those that lie in a chip's on-chip memory, are left out, because
  they take no place in its main memory. `bytes` does not count padding. Values of equal size and
  name are listed once.
  """
  fused = {name for line in hlo.splitlines() if ' fusion(' in line for name in _CALL.findall(line)}
  inside, found = '', {}
  for line in hlo.splitlines():
    header = _COMPUTATION.match(line)
    if header:
      inside = header['name']
    match = _VALUE.match(line) if inside not in fused else None
    if not match or match['op'] in _NO_VALUES:
      continue
    parts = re.findall(r'(?:pred|[a-z]+\d+\w*)\[[\d,]*\](?:\{[^}]*\})?', match['shape'])
    for part in parts:
      if 'S(' not in part:
        name = match['name']
        key = (
          _bytes(_SHAPE.findall(part)[0]),
          _modules(name) + (' (backward)' if 'transpose(' in name else ''),
        )
        found.setdefault(key, part.split('{')[0])
  top = sorted(found.items(), key=lambda item: -item[0][0])[:count]
  return [{'bytes': size, 'shape': shape, 'where': where} for (size, where), shape in top]


def donated(hlo: str) -> int:
  """Returns the number of arguments whose memory the results of a compiled program take over."""
  header = hlo[: hlo.index('\n')]
  found = re.search(r'input_output_alias=\{(.*?)\}, \w+=', header)
  return len(re.findall(r'\(\d+, \{[\d, ]*\}', found[1] if found else ''))


def callbacks(hlo: str) -> int:
  """Returns the number of places at which a compiled program waits for Python on the host."""
  return len(
    re.findall(
      r'custom_call_target="[^"]*callback| (?:infeed|outfeed)\(|is_host_transfer=true', hlo
    )
  )
