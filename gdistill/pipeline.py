"""The composition root: plan, skip what is finished, wire data + teacher + loss + folder."""

import concurrent.futures
import functools
import importlib.metadata
import math
import platform
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gdistill import checks
from gdistill import errors
from gdistill import train
from gdistill.core import guidance as core_guidance
from gdistill.core import projections
from gdistill.data import latents
from gdistill.data import pipeline as data
from gdistill.data import source
from gdistill.devices import processes
from gdistill.devices import sharding
from gdistill.frozen import encode
from gdistill.process import interrupt
from gdistill.process import progress
from gdistill.recipe import identity
from gdistill.recipe import reading
from gdistill.recipe import settings as recipes
from gdistill.rounds import folder as folders
from gdistill.rounds import network as networks
from gdistill.rounds import plan as plans
from gdistill.stages import draw
from gdistill.stages import encoder
from gdistill.stages import guidance
from gdistill.stages import progressive
from gdistill.stages import teacher as teacher_stage
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
    _record(workdir, 'data', examples=len(examples), fingerprint=examples.fingerprint)
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
  seconds: train.Seconds,
  compiled: dict[str, concurrent.futures.Future] | None = None,
) -> None:
  """Trains every round of the plan that is not finished; a finished run does nothing.

  `compiled` holds the train step of each stage; runs of one recipe may share it.
  """
  workdir = storage.path(workdir)
  mesh = checks.everything(recipe, workdir)
  checks.warn_of_eps(recipe)
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
          promise.set_result(_compile(recipe, stage, mesh, examples, workdir))
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
      _record(workdir, 'round-finished', round=r.name)
    if storage.exists(workdir / r.name / 'steps'):
      storage.remove_tree(workdir / r.name / 'steps')


def _compile(
  recipe: recipes.Recipe, stage: str, mesh: Mesh, examples: Any, workdir: Any
) -> Callable:
  """The one train step of a stage, ahead of time and from shapes alone."""
  settings = recipe.settings(stage)
  cpu = jax.default_backend() == 'cpu'
  substeps = 1 if cpu else recipe.train.substeps

  _, teacher = _student_and_teacher(recipe, stage)
  rows = (substeps, settings.batch_size)
  batch = {
    name: jax.ShapeDtypeStruct((*rows, *shape), dtype)
    for name, (shape, dtype) in {**examples.fields, 'id': ((), np.int32)}.items()
  }
  given = jax.eval_shape(lambda: train.numbers(1, 1.0, 1, jax.random.key(0)))
  step = train.compile_step(
    train.make_step(loss_of(recipe, stage), settings, cpu, mesh),
    state_shapes(recipe, stage, mesh),
    _placed(teacher, sharding.tree_shardings(mesh, teacher)),
    _placed(batch, jax.tree.map(lambda _: sharding.batches_sharding(mesh), batch)),
    _placed(given, jax.tree.map(lambda _: sharding.replicated(mesh), given)),
  )
  _record(workdir, 'compiled', stage=stage)
  return step


def state_shapes(recipe: recipes.Recipe, stage: str, mesh: Mesh) -> states.TrainState:
  """A stage's state as shapes with shardings."""
  student, _ = _student_and_teacher(recipe, stage)
  state = jax.eval_shape(_create(recipe.settings(stage)), student)
  return _placed(state, train.state_shardings(mesh, state))


def _placed(tree: Any, shardings: Any) -> Any:
  return jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings
  )


def _student_and_teacher(recipe: recipes.Recipe, stage: str) -> tuple[Any, Any]:
  """Shapes of a stage's own parameters and of its teacher's; a teacher has none."""
  student = _shapes(recipe, takes_w=recipe.takes_w and stage != 'teacher')
  if stage == 'teacher':
    return student, None
  teacher = _shapes(recipe, takes_w=recipe.takes_w and stage in ('progressive', 'encoder'))
  if stage == 'guidance' and recipe.stages[0] == 'guidance' and _has_null_network(recipe.initial):
    teacher = networks.Pair(teacher, teacher)
  return student, jax.eval_shape(functools.partial(networks.as_teacher, recipe.model), teacher)


def _has_null_network(folder: str) -> bool:
  """Of a finished round; a plan may name one that is not there yet."""
  there = finished_rounds.is_finished(folder)
  return there and finished_rounds.read_card(folder).get('null') == 'network'


def _create(settings: recipes.Training) -> Callable:
  return functools.partial(states.create, tx=train.optimizer(settings), with_ema=settings.ema > 0)


def _run_round(recipe, workdir, r, examples, mesh, step, stop, seconds) -> None:
  settings, folder = recipe.settings(r.stage), workdir / r.name
  substeps = 1 if jax.default_backend() == 'cpu' else recipe.train.substeps
  began = time.monotonic()
  _record(workdir, 'round-entered', round=r.name)
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

  given = train.numbers(r.steps, r.lr, r.num_steps, key_steps)
  given = sharding.put_like(jax.tree.map(lambda _: sharding.replicated(mesh), given), given)
  with seconds('compile'):
    while not concurrent.futures.wait([step], 0.5).done:
      stop.check(moved=False)
    step = step.result()
  state = train.fit(
    folder, fresh, state_shapes(recipe, r.stage, mesh), step, teacher, batches, given, r.steps,
    recipe.train, substeps, stop, seconds,
  )  # fmt: skip
  with seconds('save'):
    card = _card(recipe, r, state, examples, time.monotonic() - began)
    stop.watch()
    finished_rounds.finish(folder, states.handed_on(state), card)
    _record(workdir, 'round-finished', round=r.name)
    if jax.process_index() == 0:
      storage.remove_tree(folder / 'steps')
  progress.say(f'{r.name}: finished {r.steps} updates in {time.monotonic() - began:.0f} s')


# In every random key of a stage.
_ID = {'teacher': 1, 'guidance': 2, 'progressive': 3, 'encoder': 4}


def loss_of(recipe: recipes.Recipe, stage: str) -> train.Loss:
  """The stage's loss with everything but arrays settled: (params, teacher params, batch, ...)."""
  noise = networks.noise(recipe.noise)
  takes_w = recipe.takes_w and stage != 'teacher'
  student_net = networks.of_recipe(recipe, takes_w, recipe.train.remat == 'blocks')
  settings = recipe.settings(stage)
  low, high = recipe.guidance.w_min, recipe.guidance.w_max
  shared = {'noise': noise, 'weight': settings.weight}
  project = networks.projection(recipe.latent)

  def loss(params, teacher_params, batch, key, num_steps):
    x, more, key_loss, key_dropout = _clean(recipe, batch, key)
    cond = {k: v for k, v in batch.items() if k in ('label', 'text', 'text_mask')} | more
    examples = {'x': x, 'cond': cond, 'id': batch['id']}
    drops = stage == 'teacher' and recipe.model.dropout
    dropout = (key_dropout, batch['id']) if drops else None
    student = networks.as_v_fn(student_net, params, recipe.model, noise, dropout)
    if stage == 'teacher':
      return teacher_stage.loss(
        student, None, examples, key_loss, p_uncond=recipe.teacher.p_uncond, **shared
      )
    loss_project = projections.clip if settings.clip_x_hat else None
    if stage == 'guidance':
      net = networks.of_recipe(recipe, takes_w=False)
      pair = isinstance(teacher_params, networks.Pair)
      teacher, *other = (
        networks.as_v_fn(net, p, recipe.model, noise)
        for p in (teacher_params if pair else (teacher_params,))
      )
      halves = core_guidance.halves(
        teacher, other=other[0] if pair else None, one_batch=settings.one_batch
      )
      steps = settings.trajectory_steps if settings.state == 'trajectory' else 0
      return guidance.loss(
        student, halves, examples, key_loss,
        w_min=low, w_max=high, w_power=settings.w_power, ws_per_pass=settings.ws_per_pass,
        trajectory_steps=steps, project=project, loss_project=loss_project, **shared,
      )  # fmt: skip
    net = networks.of_recipe(recipe, takes_w)
    teacher = networks.as_v_fn(net, teacher_params, recipe.model, noise)
    halving = dict(
      num_steps=num_steps, w_min=low, w_max=high, w_power=settings.w_power,
      on_trajectory=settings.state == 'trajectory', project=project,
      loss_project=loss_project, **shared,
    )  # fmt: skip
    if stage == 'encoder':
      return encoder.loss(student, teacher, examples, key_loss, **halving)
    return progressive.loss(
      student, teacher, examples, key_loss, sampler=settings.sampler,
      p_uncond=recipe.teacher.p_uncond if recipe.naive else 0.0, **halving,
    )  # fmt: skip

  return loss


def _clean(recipe, batch, key):
  """(x, what an inpainting network is shown of it, keys of the loss and of dropout)."""
  flip = recipe.data.flip
  if recipe.inpainting:
    key_loss, key_dropout, key_x, key_mask = jax.random.split(key, 4)
    if recipe.latent:
      x, extra = draw.masked_latents(batch, key_x, key_mask, flip=flip)
    else:
      x = draw.images(batch, key_x, flip=flip)
      extra = draw.masked_images(x, key_mask, batch['id'])
    return x, {'extra': extra}, key_loss, key_dropout
  if flip or recipe.latent:
    key_loss, key_dropout, key_x = jax.random.split(key, 3)
  else:
    (key_loss, key_dropout), key_x = jax.random.split(key), None
  clean = draw.latents if recipe.latent else draw.images
  return clean(batch, key_x, flip=flip), {}, key_loss, key_dropout


def _fresh_state(recipe, r, where, key, mesh) -> states.TrainState:
  """The round's first state: drawn where it will live, or the teacher's of folder `where`."""
  net = networks.of_recipe(recipe, recipe.takes_w and r.stage != 'teacher')
  create = _create(recipe.settings(r.stage))
  shardings = jax.tree.map(lambda a: a.sharding, state_shapes(recipe, r.stage, mesh))
  if where is None:
    return networks.drawn(
      lambda key: create(networks.initial_params(net, recipe.model, key)), key, shardings
    )
  params = networks.grown(net, recipe.model, key, folders.read_folder(where).params)
  params = sharding.put_like(shardings.params, params)
  return jax.jit(create, out_shardings=shardings)(params)


def _card(recipe, r, state, examples, seconds) -> dict:
  """What a reader of the folder must know, and what it is good to know."""
  params = states.handed_on(state)
  plain = reading.to_dict(recipe)
  teacher = r.stage == 'teacher'
  samplers = {'progressive': recipe.progressive.sampler, 'encoder': 'deterministic'}
  return {
    'stage': r.stage,
    'num_steps': r.num_steps,
    'sampler': samplers.get(r.stage, 'any'),
    'takes_w': recipe.takes_w and not teacher,
    'guided': teacher or recipe.naive,
    'p_uncond': recipe.teacher.p_uncond if teacher or recipe.naive else 0.0,
    'null_label': -1,
    'w_min': recipe.guidance.w_min,
    'w_max': recipe.guidance.w_max,
    'clip_x_hat': not teacher and recipe.settings(r.stage).clip_x_hat,
    'predict': recipe.model.predict,
    'model': plain['model'],
    'noise': plain['noise'],
    'class_names': list(examples.class_names),
    'latents': encode.about(recipe),
    'data': {'examples': len(examples), 'fingerprint': examples.fingerprint},
    'teacher': str(storage.path(r.teacher)) if r.outside else r.teacher,
    'licence': finished_rounds.read_card(recipe.initial).get('licence') if recipe.initial else None,
    'steps': r.steps,
    'lr': r.lr,
    'skipped': int(state.skipped),
    'seed': recipe.seed,
    'parameters': sum(a.size for a in jax.tree.leaves(params)),
    'seconds': round(seconds, 3),
    'config': plain,
    'config_digest': identity.digest(recipe),
    'versions': versions(),
  }


def versions() -> dict[str, str]:
  names = ('gdistill', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
  found = {'python': platform.python_version(), 'backend': jax.default_backend()}
  for name in names:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = 'not installed'
  return found


def describe(recipe: recipes.Recipe, mesh: Mesh, workdir: storage.epath.Path | None = None) -> str:
  """The plan in words: rounds, updates, images, parameters, bytes, programs. Starts nothing.

  With a workdir it says which of the rounds are finished there.
  """
  from clu import parameter_overview

  shapes = _shapes(recipe, recipe.takes_w)
  plan = plans.plan(recipe)
  lines = [parameter_overview.get_parameter_overview(shapes, include_stats=False), '']
  lines.append(f'{"round":24}{"updates":>11}{"lr":>9}{"batch":>7}{"images seen":>15}  learns from')
  for r in plan:
    batch = recipe.settings(r.stage).batch_size
    lines.append(
      f'{r.name:24}{r.steps:11,}{r.lr:9g}{batch:7,}{r.steps * batch:15,}  {r.teacher or "data"}'
    )
  updates = sum(r.steps for r in plan)
  images = sum(r.steps * recipe.settings(r.stage).batch_size for r in plan)
  stages = list(dict.fromkeys(r.stage for r in plan))
  sizes = ' x '.join(f'{name}={size}' for name, size in mesh.shape.items())
  lines += [
    f'{"total":24}{updates:11,}{"":16}{images:15,}',
    '',
    f'mesh: {sizes} = {mesh.size} devices',
    f'{"bytes held per device":24}{"parameters":>16}{"moments, mean":>16}{"teacher":>16}{"all":>16}'
    f'{"images":>8}',
  ]
  for stage in stages:
    held = bytes_per_device(recipe, stage, mesh)
    settings = recipe.settings(stage)
    rows = settings.batch_size // settings.accumulation // mesh.size
    each = ''.join(f'{n:16,}' for n in (*held, sum(held)))
    lines.append(f'{stage:24}{each}{rows:8,}')
  lines.append(
    f'compiled train steps: {len(stages)} ({", ".join(stages)}), each once for its rounds'
  )
  if workdir is not None:
    done = [r.name for r in plan if finished_rounds.is_finished(workdir / r.name)]
    todo = [r.name for r in plan if r.name not in done]
    lines.append(f'finished in {workdir}: {", ".join(done) or "none"}; to do: {len(todo)} rounds')
  return '\n'.join(lines)


def _shapes(recipe: recipes.Recipe, takes_w: bool) -> Any:
  return networks.initial_shapes(networks.of_recipe(recipe, takes_w), recipe.model)


def bytes_per_device(recipe: recipes.Recipe, stage: str, mesh: Mesh) -> tuple[int, int, int]:
  """Bytes of parameters, of moments and running mean, and of the teacher, after sharding."""
  _, teacher = _student_and_teacher(recipe, stage)
  teacher = _placed(teacher, sharding.tree_shardings(mesh, teacher))
  state = state_shapes(recipe, stage, mesh)

  def held(tree):
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in leaves)

  return held(state.params), held((state.ema, state.opt)), held(teacher)


def _record(workdir, event, **fields) -> None:
  if jax.process_index() == 0:
    ledger.record(workdir, event, **fields)


def account(workdir: Any, seconds: train.Seconds) -> None:
  """Adds this process's seconds to WORKDIR/time.json, and says them in one line."""
  file = storage.path(workdir) / 'time.json'
  before = storage.read_json(file) if storage.exists(file) else {}
  total = {k: v for k, v in dict(before).items() if isinstance(v, (int, float))}
  for name, spent in seconds.spent.items():
    total[name] = round(total.get(name, 0.0) + spent, 3)
  if jax.process_index() == 0:
    storage.write_json(file, total)
  progress.say('seconds: ' + ', '.join(f'{k} {v:.1f}' for k, v in seconds.spent.items()))
