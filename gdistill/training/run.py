"""The composition root: plan, skip what is finished, wire data + teacher + loss + folder."""

import concurrent.futures
import functools
import threading
import time
from typing import Any

import jax
import numpy as np

from gdistill import errors
from gdistill.data import latents
from gdistill.data import pipeline as data
from gdistill.data import source
from gdistill.devices import processes
from gdistill.devices import sharding
from gdistill.frozen import encode
from gdistill.process import interrupt
from gdistill.process import progress
from gdistill.process import timing
from gdistill.recipe import identity
from gdistill.recipe import reading
from gdistill.recipe import settings as recipes
from gdistill.rounds import folder as folders
from gdistill.rounds import network as networks
from gdistill.rounds import plan as plans
from gdistill.training import card as cards
from gdistill.training import checks as run_checks
from gdistill.training import loop
from gdistill.training import shapes as stage_shapes
from gdistill.training import step as train_step
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import ledger
from gdistill.workdir import state as states
from gdistill.workdir import storage


def _check_same_data(
  workdir: storage.epath.Path, examples: source.Source | latents.Latents
) -> None:
  """A run goes on only with the data it began with, wherever they lie now; process 0 tells."""
  told = [e for e in ledger.ledger(workdir) if e['event'] == 'data']
  if not told:
    stage_shapes.record(workdir, 'data', examples=len(examples), fingerprint=examples.fingerprint)
  elif told[0].get('fingerprint') != examples.fingerprint:
    raise errors.DataError(
      f'the data are not those this run began with: {len(examples)} examples with fingerprint '
      f'{examples.fingerprint}, then {told[0].get("examples")} with {told[0].get("fingerprint")}; '
      'restore them or choose another workdir'
    )


def run(
  recipe: recipes.Recipe,
  workdir: Any,
  stop: interrupt.Interrupt,
  seconds: timing.Seconds,
  compiled: dict[str, concurrent.futures.Future] | None = None,
) -> None:
  """Trains every round of the plan that is not finished; a finished run does nothing.

  `compiled` holds the train step of each stage; runs of one recipe may share it.
  """
  workdir = storage.path(workdir)
  mesh = run_checks.everything(recipe, workdir)
  run_checks.warn_of_eps(recipe)
  processes.agree('config', identity.digest_together(recipe))
  plan = plans.plan(recipe)
  resolved, config_file = reading.to_dict(recipe), workdir / 'config.json'
  if jax.process_index() == 0:
    if not storage.exists(config_file) or storage.read_json(config_file) != resolved:
      storage.write_json(config_file, resolved)
    for r in plan:
      _tidy(workdir, r)
  if all(finished_rounds.is_finished(workdir / r.name) for r in plan):
    return
  with seconds('data'):
    if recipe.latent:
      _encode(recipe, workdir, stop)
    examples = encode.examples(recipe, workdir)
    processes.agree('data', examples.fingerprint)
    _check_same_data(workdir, examples)
  compiled = {} if compiled is None else compiled
  todo = [r for r in plan if not finished_rounds.is_finished(workdir / r.name)]
  updates = sum(r.steps for r in todo)
  progress.say(
    f'{workdir}: {len(todo)} of {len(plan)} rounds to do, {updates:,} updates, on {mesh.size} '
    f'{jax.devices()[0].platform} device{"s" if mesh.size > 1 else ""}; first it compiles'
  )
  stages = [s for s in dict.fromkeys(r.stage for r in todo) if s not in compiled]
  pending = {stage: concurrent.futures.Future() for stage in stages}
  compiled |= pending

  def compile_all():  # the next stage compiles while the one before it trains
    for stage, promise in pending.items():
      if promise.set_running_or_notify_cancel():
        try:
          promise.set_result(stage_shapes.compile_stage(recipe, stage, mesh, examples, workdir))
        except BaseException as e:
          promise.set_exception(e)

  # No executor, which would be waited for: a compile takes minutes, and who is told to leave has
  # half of one.
  threading.Thread(target=compile_all, name=interrupt.COMPILING, daemon=True).start()
  try:
    for r in todo:
      if processes.any_process(bool(stop.requested)):
        raise errors.Preempted(
          f'{stop.requested or "a signal"}: what is finished is saved; repeat the command to go on'
        )
      with stop.patient():
        _run_round(recipe, workdir, r, examples, mesh, compiled[r.stage], stop, seconds)
  except BaseException:
    for stage, promise in pending.items():
      if promise.cancel():
        del compiled[stage]
    raise


def _encode(recipe: recipes.Recipe, workdir: storage.epath.Path, stop: interrupt.Interrupt) -> None:
  """The training pictures' latents, unless they are there, and a copy of what decodes them."""
  done = encode.run(recipe, encode.cache(recipe, workdir), stop)
  if done.encoded:
    speed = done.encoded / done.seconds
    progress.say(f'encoded {done.encoded:,} pictures, both flips, {speed:.0f} pictures a second')
  if not jax.process_index() and not encode.kept(workdir):
    encode.keep(recipe, workdir)


def _tidy(workdir: storage.epath.Path, r: plans.Round) -> None:
  """What a kill between a round's card and its last words may have left undone."""
  if finished_rounds.is_finished(workdir / r.name):
    told = any(
      e['event'] == 'round-finished' and e.get('round') == r.name for e in ledger.ledger(workdir)
    )
    if not told:
      stage_shapes.record(workdir, 'round-finished', round=r.name)
    if storage.exists(workdir / r.name / 'steps'):
      storage.remove_tree(workdir / r.name / 'steps')


def _run_round(recipe, workdir, r, examples, mesh, step, stop, seconds) -> None:
  settings, folder = recipe.settings(r.stage), workdir / r.name
  substeps = 1 if jax.default_backend() == 'cpu' else recipe.train.substeps
  began = time.monotonic()
  stage_shapes.record(workdir, 'round-entered', round=r.name)
  teacher, where = None, None
  if r.teacher:
    where = r.teacher if r.outside else workdir / r.teacher
  if where is not None and r.stage != 'teacher':
    with seconds('restore'):
      found = folders.read_folder(where)
      pair = r.stage == 'guidance' and found.null_params is not None
      teacher = networks.Pair(found.params, found.null_params) if pair else found.params
      teacher = networks.as_teacher(recipe.model, teacher)
    teacher = sharding.put_like(sharding.tree_shardings(mesh, teacher), teacher)
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(recipe.seed), _ID[r.stage]), r.index)
  key_init, key_steps = jax.random.split(key)
  # It reads the teacher again: held on to, the copy would lie beside the state for the whole round.
  fresh = functools.partial(_fresh_state, recipe, r, where, key_init, mesh)

  size, rows = settings.batch_size, sharding.local_rows(mesh, settings.batch_size)
  read = data.reader(examples, (recipe.seed, r.index), size, rows, r.steps, recipe.data)

  def batches(step, count):
    # The leading axis is updates; rows are sharded behind it.
    made = jax.tree.map(lambda *a: np.stack(a), *(read(step + i) for i in range(count)))
    return sharding.put_batches(mesh, size, made)

  given = train_step.numbers(r.steps, r.lr, r.num_steps, key_steps)
  given = sharding.put_like(jax.tree.map(lambda _: sharding.replicated(mesh), given), given)
  with seconds('compile'):
    while not concurrent.futures.wait([step], 0.5).done:
      stop.check(moved=False)
    step = step.result()
  state = loop.fit(
    folder, fresh, stage_shapes.state_shapes(recipe, r.stage, mesh), step, teacher, batches,
    given, r.steps, recipe.train, substeps, stop, seconds,
  )  # fmt: skip
  with seconds('save'):
    card = cards.make_card(recipe, r, state, examples, time.monotonic() - began)
    stop.watch()
    finished_rounds.finish(folder, states.handed_on(state), card)
    stage_shapes.record(workdir, 'round-finished', round=r.name)
    if jax.process_index() == 0:
      storage.remove_tree(folder / 'steps')
  progress.say(f'{r.name}: finished {r.steps} updates in {time.monotonic() - began:.0f} s')


# In every random key of a stage.
_ID = {'teacher': 1, 'guidance': 2, 'progressive': 3, 'encoder': 4}


def _fresh_state(recipe, r, where, key, mesh) -> states.TrainState:
  """The round's first state: drawn where it will live, or the teacher's of folder `where`."""
  net = networks.of_recipe(recipe, recipe.takes_w and r.stage != 'teacher')
  create = stage_shapes.state_maker(recipe.settings(r.stage))
  shardings = jax.tree.map(lambda a: a.sharding, stage_shapes.state_shapes(recipe, r.stage, mesh))
  if where is None:
    return networks.drawn(
      lambda key: create(networks.initial_params(net, recipe.model, key)), key, shardings
    )
  params = networks.grown(net, recipe.model, key, folders.read_folder(where).params)
  params = sharding.put_like(shardings.params, params)
  return jax.jit(create, out_shardings=shardings)(params)


def account(workdir: Any, seconds: timing.Seconds) -> None:
  """Adds this process's seconds to WORKDIR/time.json, and says them in one line."""
  file = storage.path(workdir) / 'time.json'
  before = storage.read_json(file) if storage.exists(file) else {}
  total = {k: v for k, v in dict(before).items() if isinstance(v, (int, float))}
  for name, spent in seconds.spent.items():
    total[name] = round(total.get(name, 0.0) + spent, 3)
  if jax.process_index() == 0:
    storage.write_json(file, total)
  progress.say('seconds: ' + ', '.join(f'{k} {v:.1f}' for k, v in seconds.spent.items()))
