"""P1, P2: is a distillation step as fast as two teacher forwards and one student gradient?

  python benchmarks/step.py

These parts are timed separately, each as its own program. A ratio above 1 is the cost of the other
work in a step: noise, target, loss, Adam, EMA, learning rate.
"""

import common
import jax
from jax import numpy as jnp

WHAT = {'guidance': ('P1', 'stage-one step'), 'progressive': ('P2', 'stage-two step')}


def main() -> None:
  args = common.arguments(__doc__)
  rows, details = [], {}
  sizes = (('tiny', 4),) if args.smoke else (('digits', 64), ('small32', 32), ('small128', 8))
  for network, batch in sizes:
    for stage, (which, what) in WHAT.items():
      step = common.Step(common.recipe(network, batch), stage)
      taken = common.interleaved({'step': step, **parts(step, batch)}, args.repeats, args.seconds)
      alone = common.added(taken['forward'], taken['forward'], taken['gradient'])
      values = common.ratios(taken['step'], alone)
      text = f'{what} over 2 teacher forwards + student gradient, {network}, batch {batch}'
      rows.append(common.row(which, text, values, '<= 1.05'))
      details[f'{network}_{stage}_seconds'] = common.medians(taken)
  common.show(rows, **details)


def parts(step: common.Step, batch: int) -> dict:
  """Returns {'forward': one teacher pass, 'gradient': loss and gradient of the student}."""
  settings = step.recipe.model
  student_w, teacher_w = common.takes_w(step.recipe, step.stage)
  forward = jax.jit(common.network(settings, teacher_w))
  student = common.network(settings, student_w)
  given = jax.device_put(common.inputs(settings, batch))
  params = jax.device_put(step.params)

  def error(params, *given):
    return jnp.mean(jnp.square(student(params, *given) - given[0]))

  gradient = jax.jit(jax.value_and_grad(error))
  return {
    'forward': lambda: jax.block_until_ready(forward(step.teacher, *given)),
    'gradient': lambda: jax.block_until_ready(gradient(params, *given)),
  }


if __name__ == '__main__':
  main()
