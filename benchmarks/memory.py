"""P12: temporary memory of the compiled step, relative to the least that its gradient needs.

  python benchmarks/memory.py

The floor is the input of every convolution and matrix product of the student (counting.py gives the
reason) plus one gradient of all parameters. The whole gradient exists at once, because it is
clipped by its global norm. The second figure is the memory that running the teacher's two passes
as one batch adds.
"""

import common
import counting


def main() -> None:
  args = common.arguments(__doc__)
  rows, details = [], {}
  sizes = (('tiny', 4),) if args.smoke else (('small32', 64), ('small128', 16))
  for network, batch in sizes:
    found = {}
    for stage in ('guidance', 'progressive'):
      step = common.Step(common.recipe(network, batch), stage)
      settings = step.recipe.model
      forward = common.network(settings, common.takes_w(step.recipe, stage)[0])
      given = common.inputs(settings, batch)
      found[stage] = step.compiled.memory_analysis().temp_size_in_bytes
      floor = counting.activation_floor(forward, step.params, *given)
      gradient = 4 * common.count(step.params)
      text = f'temporary memory of the {stage} step over the floor, {network}, batch {batch}'
      rows.append(common.row('P12', text, found[stage] / (floor + gradient), '<= 1.5'))
      found |= {f'{stage}_activation_floor': floor, 'gradient': gradient}
    both = common.Step(common.recipe(network, batch, guidance=dict(one_batch=True)), 'guidance')
    found['one_batch'] = both.compiled.memory_analysis().temp_size_in_bytes
    # The peak also includes the state, the teacher and the batch.
    rest = both.compiled.memory_analysis().argument_size_in_bytes
    added = 100 * (found['one_batch'] - found['guidance']) / (found['guidance'] + rest)
    text = f'what a batched teacher adds to the peak, {network}, batch {batch}'
    rows.append(common.row('P12', text, added, '<= 5', '%'))
    details[network] = {**found, 'arguments': rest}
  common.show(rows, **details)


if __name__ == '__main__':
  main()
