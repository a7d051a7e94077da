"""Trains a run: every round of the plan that is not finished, one after the other."""

import concurrent.futures
import contextlib
import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gdistill import errors
from gdistill.data import pipeline as data
from gdistill.devices import processes
from gdistill.devices import sharding
from gdistill.frozen import copies
from gdistill.frozen import encode
from gdistill.process import interrupt
from gdistill.process import progress
from gdistill.process import timing
from gdistill.recipe import reading
from gdistill.recipe import settings as recipes
from gdistill.rounds import folder as folders
from gdistill.rounds import network as networks
from gdistill.rounds import plan as plans
from gdistill.training import assemble
from gdistill.training import card as cards
from gdistill.training import checks as run_checks
from gdistill.training import loop
from gdistill.training import same_data
from gdistill.training import shapes as stage_shapes
from gdistill.training import stage_setup
from gdistill.training import step as train_step
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import ledger
from gdistill.workdir import state as states
from gdistill.workdir import storage

# {stage: Future of the compiled train step}
Compiled = dict[str, concurrent.futures.Future]
# Folded into every random key of a stage, so that no two stages use the same random key.
_STAGE_IDS = {'teacher': 1, 'guidance': 2, 'progressive': 3, 'encoder': 4}


def train(
  run: assemble.Run,
  stop: interrupt.Interrupt,
  seconds: timing.Seconds,
  compiled: Compiled | None = None,
) -> None:
  """Trains every round of the plan that is not finished; a finished run does nothing.

  `run` must have passed checks.everything. The dict `compiled` collects the train step of each
  stage; runs with the same settings may share one `compiled`, so that each train step is compiled
  once. Raises Preempted if a signal asks this process to stop.
  """
  workdir, plan = run.workdir, run.plan
  # Checked again now that this process holds the lock, because another run may have written to the
  # workdir after the first check.
  run_checks.same_run(run.config, workdir)
  if jax.process_index() == 0:
    if not storage.exists(workdir / 'config.json'):
      _write_config(workdir, run.config, trains=True)
    for r in plan:
      _tidy(workdir, r)
  todo = [r for r in plan if not finished_rounds.is_finished(workdir / r.name)]
  _check_data(run, bool(todo), stop, seconds)
  if not todo:
    return
  updates = sum(r.steps for r in todo)
  progress.say(
    f'{workdir}: {len(todo)} of {len(plan)} rounds to do, {updates:,} updates, on {run.mesh.size} '
    f'{jax.devices()[0].platform} device{"s" if run.mesh.size > 1 else ""}; first it compiles'
  )
  compiled = {} if compiled is None else compiled
  pending = _compile_all(run, [r.stage for r in todo], compiled)
  try:
    for r in todo:
      if processes.any_process(bool(stop.requested)):
        raise errors.Preempted(
          f'{stop.requested or "a signal"}: all finished work is saved; repeat the command to '
          'resume'
        )
      with stop.patient():
        _train_round(run, r, compiled[r.stage], stop, seconds)
  except BaseException:
    for stage, promise in pending.items():
      if promise.cancel():
        del compiled[stage]
    raise


def _check_data(
  run: assemble.Run, trains: bool, stop: interrupt.Interrupt, seconds: timing.Seconds
) -> None:
  """Encodes and compares the data of a run that `trains`; then records the config of this start.

  A run with other data is refused before its config.json changes, so that the version of gdistill
  that began the run can still continue it. The data of a finished run are not compared here.
  """
  workdir = run.workdir
  if trains:
    with seconds('data'):
      if run.autoencoder:
        same_data.check_before_encoding(run)
        _encode(run, stop)
      processes.agree('data', run.examples.fingerprint)
      same_data.check(workdir, run.examples, run.own_pictures[0])
  same_data.record_samples(workdir, *run.own_pictures)
  if jax.process_index() == 0:
    _write_config(workdir, run.config, trains)
  # The evaluation reads config.json in every process.
  processes.barrier('config.json is written', hours=48)


def _write_config(workdir: storage.epath.Path, config: dict, trains: bool) -> None:
  """Writes config.json, unless the file is the same.

  Unless the run `trains`, a file that only lacks keys with default values stays as it is, because
  the earlier version of gdistill that wrote the file does not know these keys.
  """
  file = workdir / 'config.json'
  old = storage.read_json(file) if storage.exists(file) else None
  if old is not None and not trains:
    with contextlib.suppress(errors.ConfigError):
      old = reading.to_dict(reading.unchecked(old))
  if old != config:
    storage.write_json(file, config)


def _tidy(workdir: storage.epath.Path, r: plans.Round) -> None:
  """Adds the ledger entry and removes steps/ of a finished round, if a killed process has not."""
  if finished_rounds.is_finished(workdir / r.name):
    told = any(
      e['event'] == 'round-finished' and e.get('round') == r.name for e in ledger.ledger(workdir)
    )
    if not told:
      _record(workdir, 'round-finished', round=r.name)
    if storage.exists(workdir / r.name / 'steps'):
      storage.remove_tree(workdir / r.name / 'steps')


def _encode(run: assemble.Run, stop: interrupt.Interrupt) -> None:
  """Encodes training pictures without latents, and copies the frozen networks to the workdir."""
  done = encode.run(
    run.own_pictures[0], run.frozen, run.latents, run.inpainting, run.latent_folder, stop
  )
  if done.encoded:
    speed = done.encoded / done.seconds
    progress.say(f'encoded {done.encoded:,} pictures, both flips, {speed:.0f} pictures a second')
  if left_out := done.index.get('left_out'):
    progress.say(
      f'{left_out:,} pictures could not be read or are too small, and are left out of '
      f'{run.latent_folder}'
    )
  if not jax.process_index():
    copies.keep(run.frozen, run.workdir)


def _compile_all(run: assemble.Run, stages: list[str], compiled: Compiled) -> Compiled:
  """Compiles train steps in a background thread, so that one stage compiles while another trains.

  Returns {stage: Future of the train step}; the same futures are entered into `compiled`.
  """
  # The run's properties are read in this thread, because two threads could build a property twice.
  setups, mesh, fields = run.setups, run.mesh, run.examples.fields
  stages = [s for s in dict.fromkeys(stages) if s not in compiled]
  pending = {stage: concurrent.futures.Future() for stage in stages}
  compiled |= pending

  def work():
    for stage, promise in pending.items():
      if promise.set_running_or_notify_cancel():
        try:
          step = stage_shapes.compile_stage(setups[stage], mesh, fields)
          # The ledger entry is made before set_result, because an error after set_result could not
          # reach the thread that waits for the step.
          _record(run.workdir, 'compiled', stage=stage)
          promise.set_result(step)
        except BaseException as e:
          promise.set_exception(e)

  # A daemon thread, not an executor: Python waits for executors at exit, a compile takes minutes,
  # and a preempted process has thirty seconds.
  threading.Thread(target=work, name=interrupt.COMPILING, daemon=True).start()
  return pending


def _train_round(
  run: assemble.Run,
  r: plans.Round,
  step: concurrent.futures.Future,
  stop: interrupt.Interrupt,
  seconds: timing.Seconds,
) -> None:
  """Trains one round, resuming from the newest checkpoint, and writes params/ and card.json."""
  setup, mesh, folder = run.setups[r.stage], run.mesh, run.workdir / r.name
  began = time.monotonic()
  _record(run.workdir, 'round-entered', round=r.name)
  parent = None
  if r.teacher:
    parent = r.teacher if r.outside else run.workdir / r.teacher
  teacher = None
  if parent is not None and r.stage != 'teacher':
    with seconds('restore'):
      teacher = _teacher(setup, parent)
    teacher = sharding.put_like(sharding.tree_shardings(mesh, teacher), teacher)
  key = jax.random.fold_in(jax.random.key(run.seed), _STAGE_IDS[r.stage])
  key = jax.random.fold_in(key, r.index)
  key_init, key_steps = jax.random.split(key)
  size = setup.settings.batch_size
  batches = _batches(run.examples, (run.seed, r.index), size, r.steps, mesh, run.data)
  given = train_step.numbers(r.steps, r.lr, r.num_steps, key_steps)
  given = sharding.put_like(jax.tree.map(lambda _: sharding.replicated(mesh), given), given)
  with seconds('compile'):
    while not concurrent.futures.wait([step], 0.5).done:
      stop.check(moved=False)
    step = step.result()
  state = loop.fit(
    loop.Task(
      folder=folder,
      # `_fresh_state` reads the teacher's folder a second time, because parameters kept from the
      # first reading would stay in memory for the whole round.
      fresh=functools.partial(_fresh_state, setup, parent, key_init, mesh),
      like=stage_shapes.state_shapes(setup, mesh),
      step=step,
      teacher=teacher,
      batches=batches,
      given=given,
      steps=r.steps,
      substeps=setup.updates_per_call(mesh),
    ),
    run.loop,
    stop,
    seconds,
  )
  with seconds('save'):
    card = cards.make_card(r, setup, state, time.monotonic() - began, run.card_entries())
    stop.watch()
    finished_rounds.finish(folder, states.handed_on(state), card)
    _record(run.workdir, 'round-finished', round=r.name)
    if jax.process_index() == 0:
      storage.remove_tree(folder / 'steps')
  progress.say(f'{r.name}: finished {r.steps} updates in {time.monotonic() - began:.0f} s')


def _teacher(setup: stage_setup.StageSetup, folder: Any) -> Any:
  """Reads the parameters of a round's teacher, cast to the precision of the network."""
  found = folders.read_folder(folder)
  pair = setup.stage == 'guidance' and found.null_params is not None
  params = networks.Pair(found.params, found.null_params) if pair else found.params
  return networks.as_teacher(setup.model, params)


def _batches(
  examples: Any,
  seed: tuple[int, ...],
  size: int,
  steps: int,
  mesh: Mesh,
  settings: recipes.Data,
) -> Callable[[int, int], Any]:
  """Returns a function batches(step, count) that reads the batches of updates step, step + 1, ...

  The arrays that `batches` returns are [count, rows, ...], with the rows spread over the mesh.
  """
  read = data.reader(examples, seed, size, sharding.local_rows(mesh, size), steps, settings)

  def batches(step, count):
    made = jax.tree.map(lambda *a: np.stack(a), *(read(step + i) for i in range(count)))
    return sharding.put_batches(mesh, size, made)

  return batches


def _fresh_state(
  setup: stage_setup.StageSetup, parent: Any, key: jax.Array, mesh: Mesh
) -> states.TrainState:
  """Returns a round's first state, with random parameters or the parameters of round `parent`."""
  create = stage_shapes.state_maker(setup.settings)
  shardings = jax.tree.map(lambda a: a.sharding, stage_shapes.state_shapes(setup, mesh))
  net = networks.build(setup.model, setup.takes_w, noise_settings=setup.noise)
  if parent is None:
    return networks.drawn(
      lambda key: create(networks.initial_params(net, setup.model, key)), key, shardings
    )
  params = networks.grown(net, setup.model, key, folders.read_folder(parent).params)
  params = sharding.put_like(shardings.params, params)
  return jax.jit(create, out_shardings=shardings)(params)


def _record(workdir: storage.epath.Path, event: str, **fields: Any) -> None:
  """Adds an entry to the workdir's ledger; only process 0 writes."""
  if jax.process_index() == 0:
    ledger.record(workdir, event, **fields)
