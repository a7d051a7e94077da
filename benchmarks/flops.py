"""P11: does the compiled step do more arithmetic than the method needs, five forwards per example?

  python benchmarks/flops.py

Both numbers are XLA's own count of a compiled program: the whole step, and five times the
student's forward. The five are two teacher passes, the student's forward, and two for its gradient.
"""

import common
import counting
import jax


def main() -> None:
  args = common.arguments(__doc__)
  rows, details = [], {}
  sizes = (('tiny', 4),) if args.smoke else (('small32', 32), ('small128', 8))
  for network, batch in sizes:
    for stage, remat in (('guidance', 'none'), ('progressive', 'none'), ('guidance', 'blocks')):
      step = common.Step(common.recipe(network, batch, train=dict(remat=remat)), stage)
      settings = step.recipe.model
      forward = common.network(settings, common.takes_w(step.recipe, stage)[0])
      given = common.inputs(settings, batch)
      alone = counting.compiled_flops(jax.jit(forward).lower(step.params, *given).compile())
      found = {
        'step': counting.compiled_flops(step.compiled),
        'forward': alone,
        'forward_products': counting.forward_flops(forward, step.params, *given),
      }
      text = f'FLOPs of the {stage} step over 5 forwards, remat {remat}, {network}, batch {batch}'
      rows.append(
        common.row(
          'P11', text, found['step'] / (5 * alone), '<= 1.02' if remat == 'none' else '<= 1.22'
        )
      )
      details[f'{network}_{stage}_{remat}'] = found
  common.show(rows, **details)


if __name__ == '__main__':
  main()
