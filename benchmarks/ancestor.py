"""P3: our step against a step organised like the code that this project descends from.

  python benchmarks/ancestor.py

In that code the step of a round closes over the teacher's parameters, so every round compiles its
own program, and every step waits for its metrics before the next batch is sent. Our step takes the
teacher as an argument, and the loop stays one step ahead. Both make the same updates of the same
network.
"""

import time

import common
import jax

UPDATES = 4  # updates of one timed call, which waits for the last one before it returns


class Ancestor:
  """Updates by a compiled step that closes over its teacher."""

  def __init__(self, step: common.Step):
    self._step, self._batch, function = step, step.host_batch(), step.function
    teacher = jax.device_get(step.teacher)

    def closed(state, batch, given):
      return function(state, teacher, batch, given)

    self._state, self._given = step.fresh(), step.given
    began = time.perf_counter()
    jitted = jax.jit(closed, donate_argnums=0)
    self._compiled = jitted.lower(self._state, step.batch, step.given).compile()
    self.compile_seconds = time.perf_counter() - began

  def __call__(self) -> None:
    for _ in range(UPDATES):
      batch = self._step.put(self._batch)
      self._state, metrics = self._compiled(self._state, batch, self._given)
      jax.device_get(metrics)


class Ours:
  """The same updates, made as our training loop makes them."""

  def __init__(self, step: common.Step):
    self._step, self._batch = step, step.host_batch()

  def __call__(self) -> None:
    for _ in range(UPDATES):
      self._step.batch = self._step.put(self._batch)
      self._step.dispatch()
    jax.block_until_ready(self._step.state)


def main() -> None:
  args = common.arguments(__doc__)
  jax.config.update('jax_enable_compilation_cache', False)  # a cache would hide the compile times
  rows, details = [], {}
  sizes = (('tiny', 4),) if args.smoke else (('digits', 64), ('small32', 32))
  for network, batch in sizes:
    step = common.Step(common.recipe(network, batch), 'progressive')
    began = time.perf_counter()
    step.compiled  # noqa: B018
    once = time.perf_counter() - began
    ancestor = Ancestor(step)
    compiles = [ancestor.compile_seconds]
    if not args.smoke:
      compiles += [Ancestor(step).compile_seconds for _ in range(2)]
    calls = {'ours': Ours(step), 'ancestor': ancestor}
    taken = {
      name: [seconds / UPDATES for seconds in values]
      for name, values in common.interleaved(calls, args.repeats, args.seconds).items()
    }
    values = common.ratios(taken['ours'], taken['ancestor'])
    rows.append(
      common.row(
        'P3', f'our step over the ancestor-like step, {network}, batch {batch}', values, '<= 0.95'
      )
    )
    # A round of the digits ladder, including the ancestor's compile.
    updates = 260
    middle = sorted(compiles)[len(compiles) // 2]
    whole = [
      a * updates / (b * updates + middle)
      for a, b in zip(taken['ours'], taken['ancestor'], strict=True)
    ]
    rows.append(
      common.row(
        'P3', f"a later round of {updates} updates over the ancestor's, {network}", whole, ''
      )
    )
    details[network] = {**common.medians(taken), 'compile_once': once, 'compile_a_round': compiles}
  common.show(rows, **details)


if __name__ == '__main__':
  main()
