"""Builds the text that --plan --topology prints: what the compiled steps need of the chips."""

from collections.abc import Mapping, Sequence
from typing import Any

from gdistill.devices import topology as topologies
from gdistill.rounds import plan as plans


def describe(
  found: Mapping[str, Mapping[str, Any]],
  plan: Sequence[plans.Round],
  chips: topologies.Topology,
  mfu: float,
) -> str:
  """Returns a table of compiled steps, what each of them does, and the hours at an MFU of `mfu`.

  `found` is {stage: figures of training/ahead.py, or why there are none}.
  """
  chip = chips.chip
  levels = ', '.join(sorted({f['level'] for f in found.values() if 'level' in f}))
  lines = [
    f'{chips}: {chips.devices} devices, each {chip.flops / 1e12:,.0f} TFLOP/s in bfloat16, '
    f'{chip.memory / 1e9:.1f} GB, {chip.bandwidth / 1e9:,.0f} GB/s; compiled at level '
    f'{levels or "-"}',
    f'{"compiled for it":16}{"fits":>6}{"GB: state and batch":>21}{"temporaries":>13}{"all":>8}'
    f'{"TFLOP":>8}{"GB moved":>10}{"ms by FLOPs":>13}{"by bytes":>10}{"MFU at most":>13}'
    f'{"compiled in":>13}',
  ]
  for stage, figures in found.items():
    lines.append(_row(stage, figures, chip))
  for stage, figures in found.items():
    if 'memory' in figures:
      lines += ['', *_details(stage, figures)]
  lines += ['', *_hours(found, plan, chips, mfu)]
  return '\n'.join(lines)


def _held(figures: Mapping[str, Any]) -> int:
  """Returns the bytes that a compiled step takes of a device's memory."""
  return sum(figures['memory'].values())


def _floors(figures: Mapping[str, Any], chip: topologies.Chip) -> tuple[float, float]:
  """Returns the least seconds of one update: by the FLOPs of its products, and by bytes moved."""
  return figures['flops'] / chip.flops, (figures['bytes'] or 0.0) / chip.bandwidth


def _row(stage: str, figures: Mapping[str, Any], chip: topologies.Chip) -> str:
  if 'refused' in figures:
    return f'{stage:16}{"no":>6}  {" ".join(figures["refused"].split())[:400]}'
  if 'failed' in figures:
    return f'{stage:16}{"?":>6}  {figures["failed"]}'
  memory, (by_flops, by_bytes) = figures['memory'], _floors(figures, chip)
  fits = 'yes' if _held(figures) <= chip.memory else 'no'
  # XLA counts no bytes for GPUs.
  moved = f'{figures["bytes"] / 1e9:10.1f}' if by_bytes else f'{"":10}'
  bound = f'{by_bytes * 1e3:10.1f}{min(1, by_flops / by_bytes):13.0%}' if by_bytes else f'{"":23}'
  return (
    f'{stage:16}{fits:>6}{memory["arguments"] / 1e9:21.2f}{memory["temporaries"] / 1e9:13.2f}'
    f'{_held(figures) / 1e9:8.2f}{figures["flops"] / 1e12:8.2f}{moved}{by_flops * 1e3:13.1f}{bound}'
    f'{sum(figures["seconds"].values()):11.0f} s'
  )


def _details(stage: str, figures: Mapping[str, Any]) -> list[str]:
  """Returns lines on what a compiled step does: collectives, products, donation, large values."""
  sent = [
    f'{c["count"]} {c["kind"]}{" over " + c["axis"] if c["axis"] else ""} of {c["leaves"]} arrays, '
    f'{c["bytes"] / 1e6:,.1f} MB'
    for c in figures['collectives']
  ]
  products = ', '.join(f'{n} in {kind}' for kind, n in sorted(figures['products'].items()))
  state = figures.get('state')
  donated = f'{figures["donated"]} of {state} arrays of the state are donated; ' if state else ''
  lines = [
    f'{stage} sends: {"; ".join(sent) or "nothing"}',
    f'{stage} multiplies: {products}{_in_float32(figures)}',
    f'{stage}: {donated}{figures["callbacks"]} callbacks',
  ]
  for one in figures['largest']:
    lines.append(f'{stage} makes: {one["bytes"] / 1e9:8.3f} GB {one["shape"]} in {one["where"]}')
  return lines


def _in_float32(figures: Mapping[str, Any]) -> str:
  """Returns '; float32 in ...': the modules of a bfloat16 network that multiply float32 numbers."""
  if not any('bfloat16' in kind for kind in figures['products']):
    return ''
  return f'; float32 in {", ".join(figures["float32"]) or "none"}'


def _hours(
  found: Mapping[str, Mapping[str, Any]],
  plan: Sequence[plans.Round],
  chips: topologies.Topology,
  mfu: float,
) -> list[str]:
  """Returns a line for each round whose step was compiled: hours and chip-hours."""
  count = chips.devices // chips.chip.per_chip
  lines = [f'{f"hours at {mfu:.0%} MFU":24}{"updates":>11}{"hours":>9}{"chip-hours":>12}']
  total = 0.0
  for r in plan:
    figures = found.get(r.stage, {})
    if 'flops' in figures:
      by_flops, by_bytes = _floors(figures, chips.chip)
      hours = r.steps * max(by_flops / mfu, by_bytes) / 3600
      total += hours
      lines.append(f'{r.name:24}{r.steps:11,}{hours:9.2f}{hours * count:12,.0f}')
  return [*lines, f'{"total of these":24}{"":11}{total:9.2f}{total * count:12,.0f}']
