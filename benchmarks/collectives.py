"""P10: what the compiled step sends to other devices; the goal is one reduction, of the gradient.

  python benchmarks/collectives.py

The counts are read from the program compiled for 8 devices made of a CPU: they are exact, and
nothing is timed. The loss, one number, may be reduced together with the gradient. Adam's moments
and the EMA of leaves of 2^16 elements or more are sharded over the devices; the parameters are then
gathered again after the update. The digits' network has no leaf of that size.
"""

import common

from gdistill.devices import program

DEVICES = 8
SIZES = (('digits', 'teacher'), ('digits', 'guidance'), ('digits', 'progressive'))


def main() -> None:
  args = common.arguments(__doc__, devices=DEVICES)
  rows, details = [], {}
  sizes = (('tiny', 'guidance'),) if args.smoke else (*SIZES, ('small128', 'guidance'))
  for network, stage in sizes:
    step = common.Step(common.recipe(network, 64), stage, devices=DEVICES)
    found, parameters = program.collectives(step.compiled.as_text()), common.count(step.params)
    reduced = [c for c in found if c['kind'] in ('all-reduce', 'reduce-scatter')]
    # The result of a reduce-scatter on one device is only that device's shard.
    sent = sum(c['bytes'] * (DEVICES if c['kind'] == 'reduce-scatter' else 1) for c in reduced)
    extra = sent - 4 * parameters
    rows += [
      common.row('P10', f'reductions in the {stage} step, {network}', len(reduced), '= 1'),
      common.row(
        'P10', f'bytes reduced beyond 4 x {parameters:,} parameters, {stage}, {network}', extra,
        '<= 4', 'bytes',
      ),
    ]  # fmt: skip
    others = [c for c in found if c not in reduced]
    if others:
      text = f'bytes gathered in the {stage} step, {network}'
      rows.append(common.row('P10', text, sum(c['bytes'] for c in others), '', 'bytes'))
    details[f'{network}_{stage}'] = {'collectives': found, 'parameters': parameters}
  common.show(rows, **details)


if __name__ == '__main__':
  main()
