"""The only training loop: a compiled step, checkpoints, logs, preemption. It knows no diffusion."""

import contextlib
import dataclasses
import functools
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax import numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from gdistill import errors
from gdistill.devices import mesh as meshes
from gdistill.devices import processes
from gdistill.devices import sharding
from gdistill.process import interrupt
from gdistill.process import progress
from gdistill.recipe import settings as recipes
from gdistill.workdir import state as states
from gdistill.workdir import step_checkpoints
from gdistill.workdir import storage

_RESTORING = 0.25  # hours that one process waits for the others to have read their checkpoint
_ASK_EVERY = 10  # updates; machines that are taken away give half a minute's notice

# (params, teacher_params, batch, key, num_steps) -> [B]
Loss = Callable[[Any, Any, Any, jax.Array, jax.Array], jax.Array]


def _learned(params: Any) -> Any:
  """Which parameters decay: all but the embedding of no text, which a network is given."""
  return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key != 'null_text', params)


def optimizer(settings: recipes.Training) -> optax.GradientTransformation:
  """Adam, then decoupled weight decay; the step clips the gradient before and applies -lr."""
  return optax.chain(
    optax.scale_by_adam(settings.beta1, settings.beta2, settings.adam_eps),
    optax.add_decayed_weights(settings.weight_decay, _learned),
  )


def learning_rate(
  step: jax.Array, lr: jax.Array, steps: jax.Array, warmup: int, anneal: bool
) -> jax.Array:
  """lr min(1, (step + 1) / warmup), times 1 - step / steps when annealed: within the round."""
  rate = lr * jnp.minimum(1.0, (step + 1) / warmup) if warmup else lr
  return rate * (1.0 - step / steps) if anneal else rate


def numbers(steps: int, lr: float, num_steps: int, key: jax.Array) -> dict:
  """What differs between rounds, as arguments of the one compiled step of their stage."""
  return {
    'key': jax.random.key_data(key),
    'lr': jnp.float32(lr),
    'steps': jnp.float32(steps),
    'num_steps': jnp.int32(num_steps),
  }


def make_step(
  loss: Loss, settings: recipes.Training, unrolled: bool, mesh: Mesh | None = None
) -> Callable:
  """(state, teacher_params, batches [S, B, ...], numbers) -> (state, metrics of the last update).

  One call makes S updates. An update whose loss or gradient norm is not finite changes nothing
  but the counters. `unrolled` spells scans out: a convolution's weight gradient inside a scan is
  some 60 times slower on a CPU. `broken` among the metrics is the first leaf, in their order, whose
  gradient was not finite, or -1. On a `mesh` the gradient is reduced over slice and data once an
  update, however many microbatches it is made of, and lands split as the moments are; over fsdp,
  where parameters are gathered for each microbatch, it is reduced once for each.
  """
  tx = optimizer(settings)
  parts = settings.accumulation

  def gradient(
    params, teacher, batch, key, num_steps, whole=lambda params, teacher: (params, teacher)
  ):
    def value_and_grad(part):
      def mean_loss(params):
        return jnp.mean(loss(*whole(params, teacher), part, key, num_steps))

      return jax.value_and_grad(mean_loss)(params)

    def add(total, part):
      return jax.tree.map(jnp.add, total, value_and_grad(part)), None

    if parts == 1:
      return value_and_grad(batch)
    split = jax.tree.map(
      lambda a: a.reshape(a.shape[0] // parts, parts, *a.shape[1:]).swapaxes(0, 1), batch
    )
    zero = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), params))
    total, _ = jax.lax.scan(add, zero, split, unroll=parts if unrolled else 1)
    return jax.tree.map(lambda a: a / parts, total)

  def reduced(params, teacher, batch, key, num_steps):
    """The mean loss and its gradient, split as the moments are, with the squares of each leaf."""
    if mesh is None or mesh.size == 1:
      value, grads = gradient(params, teacher, batch, key, num_steps)
      return value, grads, jnp.stack([jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)])
    # Said by hand, device by device. Left to itself the partitioner reduces once a microbatch,
    # once a leaf for the norm, and gathers activations where those are smaller than parameters.
    split = jax.tree.map(lambda s: s.spec, sharding.tree_shardings(mesh, (params, teacher)))
    held = jax.tree.map(lambda p: sharding.held_sharding(mesh, p.shape).spec, params)

    def own_rows(params, teacher, batch, key, num_steps):
      def whole(*trees):
        return jax.tree.map(sharding.gather, trees, split)

      value, grads = gradient(params, teacher, batch, key, num_steps, whole)
      grads = jax.tree.map(functools.partial(sharding.mean_gradient, mesh), grads, split[0], held)
      squares = sharding.squares_of_split(mesh, grads, held)
      return jax.lax.psum(value, meshes.AXES) / mesh.size, grads, squares

    everywhere, rows = PartitionSpec(), PartitionSpec(meshes.AXES)
    return jax.shard_map(
      own_rows, mesh=mesh, check_vma=False,
      in_specs=(*split, rows, everywhere, everywhere), out_specs=(everywhere, held, everywhere),
    )(params, teacher, batch, key, num_steps)  # fmt: skip

  def update(state, batch, teacher, given):
    key = jax.random.fold_in(jax.random.wrap_key_data(given['key']), state.step)
    value, grads, squares = reduced(state.params, teacher, batch, key, given['num_steps'])
    norm = jnp.sqrt(jnp.sum(squares))
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    rate = learning_rate(state.step, given['lr'], given['steps'], settings.warmup, settings.anneal)

    def taken(params, ema, opt):
      shrink = settings.grad_clip / jnp.maximum(norm, settings.grad_clip)
      updates, opt = tx.update(jax.tree.map(lambda g: g * shrink, grads), opt, params)
      params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
      if ema is not None:
        ema = jax.tree.map(lambda e, p: e + (1.0 - settings.ema) * (p - e), ema, params)
      return params, ema, opt

    # A branch: selecting leaf by leaf between new and old took a fifth of a small network's step.
    skipped = lambda *old: old
    params, ema, opt = jax.lax.cond(finite, taken, skipped, state.params, state.ema, state.opt)
    state = states.TrainState(
      step=state.step + 1,
      params=params,
      ema=ema,
      opt=opt,
      skipped=state.skipped + ~finite,
      skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
    )
    metrics = {
      'loss': value,
      'grad_norm': norm,
      'lr': rate,
      'skipped': state.skipped,
      'skipped_in_a_row': state.skipped_in_a_row,
      'broken': _first(~jnp.isfinite(squares)),
    }
    return state, metrics

  def step(state, teacher, batches, given):
    def body(state, batch):
      return update(state, batch, teacher, given)

    if unrolled:
      broken = jnp.int32(-1)
      for i in range(jax.tree.leaves(batches)[0].shape[0]):
        state, metrics = body(state, jax.tree.map(lambda a, i=i: a[i], batches))
        broken = jnp.where(broken < 0, metrics['broken'], broken)
      return state, {**metrics, 'broken': broken}
    state, metrics = jax.lax.scan(body, state, batches)
    broken = metrics['broken'][jnp.argmax(metrics['broken'] >= 0)]  # of the first that had one
    return state, {**jax.tree.map(lambda a: a[-1], metrics), 'broken': broken}

  return step


def _first(flags: jax.Array) -> jax.Array:
  """Where the first one is up; -1 where none is."""
  return jnp.where(jnp.any(flags), jnp.argmax(flags), -1)


def compile_step(step: Callable, state: Any, *more: Any) -> Callable:
  """Ahead of time and donated: an executable that cannot compile a second time behind our back.

  Arguments are arrays, or shapes with shardings; the state leaves as it enters.
  """
  out = jax.tree.map(lambda a: a.sharding, state), None
  return jax.jit(step, donate_argnums=0, out_shardings=out).lower(state, *more).compile()


def state_shardings(mesh: Mesh, state: states.TrainState) -> states.TrainState:
  """Where each leaf of a state lies, from its shape."""
  held = jax.tree.map(lambda leaf: sharding.held_sharding(mesh, leaf.shape), state)
  return held.replace(params=sharding.tree_shardings(mesh, state.params))


@dataclasses.dataclass
class Seconds:
  """Where the time went: `with seconds('save'): ...`."""

  spent: dict[str, float] = dataclasses.field(default_factory=dict)

  @contextlib.contextmanager
  def __call__(self, name: str) -> Iterator[None]:
    start = time.monotonic()
    try:
      yield
    finally:
      self.spent[name] = self.spent.get(name, 0.0) + time.monotonic() - start


def fit(
  folder: storage.epath.Path,
  fresh: Callable[[], states.TrainState],
  like: states.TrainState,
  run: Callable,
  teacher: Any,
  batches: Callable[[int, int], Any],
  given: dict,
  steps: int,
  settings: recipes.Train,
  substeps: int,
  stop: interrupt.Interrupt,
  seconds: Seconds,
) -> states.TrainState:
  """Trains one round from `fresh()`, or from its newest checkpoint, to `steps` updates.

  `like` is the state's shapes with their shardings.

  `run(state, teacher, batches(step, substeps), given)` is the compiled step. Raises Preempted
  after saving when asked to stop, NumericsError when too many updates were skipped.
  """
  steps_folder = folder / 'steps'
  with seconds('restore'):
    shardings = jax.tree.map(lambda a: a.sharding, like)
    found = step_checkpoints.restore_latest(steps_folder, like, shardings)
    # Its own buffers: the step donates them. Nothing else may hold on to a state, which is large.
    step, state = (0, fresh()) if found is None else (found[0], jax.tree.map(jnp.copy, found[1]))
    del found
    stop.moved()
    processes.barrier(f'{folder.name} begins at {step}', hours=_RESTORING)
  log, watch = Log(folder, step), Finite(settings, states.names(state.params))

  def check(metrics, step):
    watch.check(jax.device_get(metrics), step)

  def save(step):
    stop.watch()
    with seconds('save'), stop.patient():
      saver.save(step, state)
      log.flush()

  metrics, since, start = None, step, time.monotonic()
  with (
    step_checkpoints.Saver(steps_folder, settings.max_to_keep, stop.watch) as saver,
    progress.Progress(folder.name, steps, step) as bar,
    stop.steady(),
  ):
    while step < steps:
      saver.check()
      with seconds('data'):
        batch = batches(step, substeps)
      with seconds('productive'):
        before, (state, metrics) = metrics, run(state, teacher, batch, given)
        step += substeps
        # At most one step ahead of the devices: virtual CPU devices die of a longer queue.
        if before is not None:
          check(before, step - substeps)
      if step % settings.log_every == 0 or step == steps:
        with seconds('productive'):
          row = {k: float(v) for k, v in jax.device_get(metrics).items() if k != 'broken'}
        now = time.monotonic()
        row['updates_per_second'] = (step - since) / max(now - start, 1e-9)
        since, start = step, now
        log.add(step, row)
        bar.update(step, loss=row['loss'], lr=row['lr'])
      else:
        bar.update(step)
      if step < steps and _asked_to_stop(stop, step, settings):
        check(metrics, step)
        save(step)
        with seconds('save'), stop.patient():
          saver.wait()
        raise errors.Preempted(
          f'{stop.requested or "a signal"}: {folder.name} is saved at step {step}; '
          'repeat the command to go on'
        )
      if step % settings.checkpoint_every == 0 and step < steps:
        check(metrics, step)
        save(step)
    with seconds('save'), stop.patient():
      saver.wait()
  if metrics is not None:
    check(metrics, step)
  log.flush()
  return state


def _asked_to_stop(stop: interrupt.Interrupt, step: int, settings: recipes.Train) -> bool:
  """Whether any process was signalled; several ask each other every ten updates or more."""
  if jax.process_count() == 1:
    return bool(stop.requested)
  stop.moved()
  every = settings.substeps * -(-_ASK_EVERY // settings.substeps)
  return step % every == 0 and processes.any_process(bool(stop.requested))


class Finite:
  """Ends a run whose updates are not finite: too many in a row, or too large a share of all."""

  def __init__(self, settings: recipes.Train, names: Sequence[str]):
    self._settings, self._names = settings, names
    self._first = ''

  def check(self, metrics: dict, step: int) -> None:
    """NumericsError, with the first leaf whose gradient broke last, after `step` updates."""
    settings, broken = self._settings, int(metrics['broken'])
    if broken >= 0:
      loss = float(metrics['loss'])
      self._first = f' (the first leaf is {self._names[broken]!r}, at a loss of {loss:g})'
    in_a_row, skipped = int(metrics['skipped_in_a_row']), int(metrics['skipped'])
    many = skipped >= settings.max_skipped_in_a_row  # a share of the first few steps says little
    share = 100 * skipped > settings.max_skipped_percent * step
    if in_a_row >= settings.max_skipped_in_a_row or (many and share):
      raise errors.NumericsError(
        f'{skipped} of {step} updates were not finite, the last {in_a_row} in a row{self._first}; '
        'lower the learning rate, or look for the first broken value with JAX_DEBUG_NANS=1'
      )


class Log:
  """Training metrics as JSON lines and TensorBoard events, written whole: stores cannot append."""

  def __init__(self, folder: storage.epath.Path, step: int):
    self._file = folder / 'metrics.jsonl'
    self._events = folder / 'events'
    self._lines = []
    if storage.exists(self._file):
      lines = storage.read_text(self._file).splitlines()
      self._lines = [a for a in lines if _step_of(a) <= step]
    self._new: list[tuple[int, dict]] = []
    self._name = f'events.out.tfevents.{int(time.time())}.{step:08d}'

  def add(self, step: int, row: dict) -> None:
    if jax.process_index() == 0:
      self._lines.append(json.dumps(storage.jsonable({'step': step, **row})))
      self._new.append((step, row))

  def flush(self) -> None:
    if not self._new:
      return
    storage.write_bytes(self._file, ('\n'.join(self._lines) + '\n').encode())
    storage.write_bytes(self._events / self._name, _tensorboard(self._new))


def _step_of(line: str) -> int:
  try:
    return int(json.loads(line)['step'])
  except (ValueError, KeyError, TypeError):
    return np.iinfo(np.int64).max  # a damaged line is dropped, not repeated


def _tensorboard(rows: list[tuple[int, dict]]) -> bytes:
  """An event file's bytes; written beside nothing, because workdirs may be object stores."""
  import tensorboardX

  with tempfile.TemporaryDirectory() as folder:
    with tensorboardX.SummaryWriter(folder) as writer:
      for step, row in rows:
        for name, value in row.items():
          writer.add_scalar(name, value, step)
    return next(pathlib.Path(folder).glob('events*')).read_bytes()
