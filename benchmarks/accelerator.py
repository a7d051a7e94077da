"""Measures one GPU or TPU chip: ceilings, training, few-step sampling, the slowest convolutions.

  python benchmarks/accelerator.py [--seconds=520] [--out=accelerator.json]

The networks are those of configs/cifar10.py and configs/imagenet64.py in bfloat16, with random
parameters, at several batch sizes. The most important measurements come first. The script ends
within --seconds, and writes the file after every measurement. Compiling takes most of the time:
with JAX_COMPILATION_CACHE_DIR set, a second run gets further than the first. FLOPs are those of
convolutions and matrix products only: 5 forwards per image and update in stage one and stage two,
one forward per image and sampling step.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator

import common
import counting
import jax
import numpy as np
from jax import numpy as jnp

from gdistill.workdir import storage

# Peak dense bfloat16 TFLOP/s by device_kind of JAX: the first name that device_kind begins with.
PEAKS = {
  'NVIDIA H200': 989,
  'NVIDIA H100 PCIe': 756,
  'NVIDIA H100': 989,
  'NVIDIA A100': 312,
  'TPU v4': 275,
  'TPU v5 lite': 197,
  'TPU v5': 459,
  'TPU v6 lite': 918,
}
# Batch sizes in the order in which they are measured, the most important one first.
BATCHES = {'imagenet64': (64, 128, 256, 32), 'cifar10': (128, 512, 1024, 64)}
SAMPLED = {'imagenet64': (128, 512, 32), 'cifar10': (512, 2048, 128)}
STAGES = ('guidance', 'progressive')
SMOKE = {'tiny': (2,)}
MEMORY = 'out of memory'


class Results:
  """Everything measured so far; the file on disk is always up to date."""

  def __init__(self, out: str, seconds: float, peak: float | None):
    self._out, self._lock = out, threading.Lock()
    self._began, self._limit = time.monotonic(), seconds
    self.peak = peak
    self.found = {'machine': common.machine(), 'peak_tflops': peak, 'measured': [], 'left_out': []}
    self._costs, self._now = {}, ''

  def left(self) -> float:
    return self._limit - (time.monotonic() - self._began)

  def measure(self, kind: str, name: str, call: Callable[[], dict]) -> dict | None:
    """Adds what `call` returns; leaves it out if the time left or the memory is too little."""
    expected = self._costs.get(kind, 0.0)
    if self.left() < 1.2 * expected:
      return self._leave_out(name, f'{self.left():.0f} s left, {expected:.0f} needed')
    began, self._now = time.monotonic(), name
    try:
      found = {'what': name, **call()}
    except Exception as e:  # a failed measurement must not end the others
      text = ' '.join(str(e).split())
      memory = 'RESOURCE_EXHAUSTED' in text or 'out of memory' in text.lower()
      return self._leave_out(name, MEMORY if memory else f'{type(e).__name__}: {text[:300]}')
    finally:
      gc.collect()  # frees the device buffers of this measurement
    took = time.monotonic() - began
    self._costs[kind] = max(took, self._costs.get(kind, 0.0))
    with self._lock:
      self.found['measured'].append({**found, 'took': took})
    self.write()
    print(f'{name}: {took:.0f} s, {self.left():.0f} left', file=sys.stderr, flush=True)
    return found

  def out_of_memory(self) -> bool:
    """Returns whether the last entry was left out for lack of memory."""
    return self.found['left_out'][-1]['why'] == MEMORY

  def _leave_out(self, name: str, why: str) -> None:
    with self._lock:
      self.found['left_out'].append({'what': name, 'why': why})
    self.write()

  def work(self, flops: float, seconds: float) -> dict:
    """Returns TFLOP/s, and its share of the peak if the peak is known."""
    rate = flops / seconds / 1e12
    return {'tflops': rate, 'share': rate / self.peak if self.peak else None}

  def write(self) -> None:
    with self._lock:
      self.found['seconds'] = time.monotonic() - self._began
      text = json.dumps(storage.jsonable(self.found), indent=2, allow_nan=False)
    with open(f'{self._out}.new', 'w', encoding='utf-8') as f:
      f.write(text)
    os.replace(f'{self._out}.new', self._out)

  def show(self) -> None:
    self.write()
    print(table(self.found), file=sys.stderr)
    print(json.dumps(storage.jsonable(self.found), indent=2, allow_nan=False), flush=True)

  def stop(self) -> None:
    """Ends the program when the time is over, even during a compile, and shows the results."""
    self._leave_out(f'{self._now} and what was to follow', 'the time is over')
    self.show()
    os._exit(0)


def timed(call: Callable[[], object], seconds: float = 1.0) -> float:
  """Returns the seconds of one call, the median of three turns; calls within a turn are queued."""
  jax.block_until_ready(call())  # compiles
  began = time.perf_counter()
  jax.block_until_ready(call())
  count = max(1, round(seconds / 3 / max(time.perf_counter() - began, 1e-6)))
  turns = []
  for _ in range(3):
    began = time.perf_counter()
    for _ in range(count):
      last = call()
    jax.block_until_ready(last)
    turns.append((time.perf_counter() - began) / count)
  return statistics.median(turns)


def ceilings(results: Results, smoke: bool) -> None:
  """Measures the TFLOP/s of a large matrix product and the GB/s of a copy."""

  def matmul():
    n = 256 if smoke else 8192
    a = jnp.full((n, n), 0.5, jnp.bfloat16) + jnp.arange(n, dtype=jnp.bfloat16) / n
    product = jax.jit(jnp.matmul)
    seconds = timed(lambda: product(a, a))
    return {'size': n, 'ms': 1e3 * seconds, **results.work(2 * n**3, seconds)}

  def copy():
    n = 1 << (16 if smoke else 30)
    a = jnp.ones(n, jnp.float32)
    add = jax.jit(lambda a: a + 1.0)
    seconds = timed(lambda: add(a))
    return {'bytes': 8 * n, 'ms': 1e3 * seconds, 'gigabytes_a_second': 8 * n / seconds / 1e9}

  results.measure('ceiling', 'matmul', matmul)
  results.measure('ceiling', 'copy', copy)


def recipe(network: str, batch: int, **sections):
  return common.recipe(network, batch, model=dict(dtype='bfloat16'), **sections)


def image_flops(network: str) -> int:
  """Returns the FLOPs of one forward of one image."""
  settings = recipe(network, 1).model
  params = common.param_shapes(settings, True)
  return counting.forward_flops(common.network(settings, True), params, *common.inputs(settings, 1))


def training(results: Results, network: str, stage: str, batch: int, **settings) -> dict | None:
  """Measures updates of one stage; `settings` override keys of that stage in the config."""

  def run():
    step = common.Step(recipe(network, batch, **({stage: settings} if settings else {})), stage)
    began = time.monotonic()
    memory = step.compiled.memory_analysis()
    compiled = time.monotonic() - began

    def call():
      step.dispatch()
      return step.metrics

    seconds = timed(call)
    # w is drawn K times per image: K student passes share one pair of teacher passes.
    k, forward = settings.get('ws_per_pass', 1), common.network(step.recipe.model, True)
    given = common.inputs(step.recipe.model, k * batch)
    floor = counting.activation_floor(forward, step.params, *given) + 4 * common.count(step.params)
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
      'network': network, 'batch': batch, 'ms': 1e3 * seconds, 'images_a_second': batch / seconds,
      **results.work((2 + 3 * k) * batch * image_flops(network), seconds),
      'peak_bytes': held + memory.temp_size_in_bytes, 'temporary_bytes': memory.temp_size_in_bytes,
      'temporary_over_floor': memory.temp_size_in_bytes / floor,  # as in memory.py
      'compile_seconds': compiled, 'loss_is_finite': bool(jnp.isfinite(step.metrics['loss'])),
    }  # fmt: skip

  text = ''.join(f' {k}={v}' for k, v in settings.items())
  return results.measure(f'{network} training', f'{network} {stage} {batch}{text}', run)


def sampling(results: Results, network: str, batch: int) -> dict | None:
  """Measures 4-step and 1-step sampling by one compiled program, as `gdistill sample` draws."""

  def run():
    read = common.folder(recipe(network, 1), 'progressive')
    seeds, w = np.arange(batch), np.ones(batch)
    began = time.monotonic()
    draw = common.sampler(read, batch)
    out = {'network': network, 'batch': batch, 'compile_seconds': time.monotonic() - began}
    for steps in (4, 1):
      seconds = timed(lambda steps=steps: draw(seeds, seeds % 10, w, steps))
      out[f'{steps}_steps'] = {
        'ms': 1e3 * seconds,
        'images_a_second': batch / seconds,
        **results.work(steps * batch * image_flops(network), seconds),
      }
    return out

  return results.measure(f'{network} sampling', f'{network} sampling {batch}', run)


def convolutions(results: Results, network: str, batch: int, seconds: float) -> None:
  """Measures each kind of convolution alone, and keeps the ten that take longest in a step.

  Each is run forward, and for the gradients of its input and of its weights. A distillation step
  runs a convolution forward three times and backward once.
  """
  settings = recipe(network, 1).model
  forward, params = common.network(settings, True), common.param_shapes(settings, True)
  kinds = {}
  for product, eqn in counting.products(forward, params, *common.inputs(settings, batch)):
    if product.kind == 'conv':
      kinds.setdefault(product, [eqn, 0])[1] += 1
  end, found = results.left() - seconds, []
  # The largest first, because the time may be over before the last.
  for product, (eqn, count) in sorted(kinds.items(), key=lambda a: -a[0].flops * a[1][1]):
    if results.left() < max(end, 0.0):
      break
    entry = results.measure(
      f'{network} convolution', f'{network} {product.name}',
      lambda product=product, eqn=eqn, count=count: convolution(results, product, eqn, count),
    )  # fmt: skip
    if entry:
      found.append(entry)
  found.sort(key=lambda a: -a['ms_a_step'])
  results.found.setdefault('slowest_convolutions', {})[network] = {
    'batch': batch, 'kinds': len(kinds), 'timed': len(found), 'ten': found[:10],
  }  # fmt: skip
  results.write()


def convolution(results: Results, product: counting.Product, eqn, count: int) -> dict:
  """Returns ms and TFLOP/s of the three directions, and the ms of all such convolutions a step."""

  def conv(x, kernel):
    return eqn.primitive.bind(x, kernel, **eqn.params)

  x, kernel, out = (jnp.full(v.aval.shape, 0.01, v.aval.dtype) for v in (*eqn.invars, *eqn.outvars))
  directions = {
    'forward': (conv, (x, kernel)),
    'input': (lambda x, k, g: jax.vjp(lambda x: conv(x, k), x)[1](g), (x, kernel, out)),
    'weight': (lambda x, k, g: jax.vjp(lambda k: conv(x, k), k)[1](g), (x, kernel, out)),
  }
  entry, whole = {'times_in_the_network': count}, 0.0
  for name, (function, args) in directions.items():
    jitted = jax.jit(function)
    seconds = timed(lambda jitted=jitted, args=args: jitted(*args), 0.15)
    entry[name] = {'ms': 1e3 * seconds, **results.work(product.flops, seconds)}
    whole += count * seconds * (3 if name == 'forward' else 1)
  return {**entry, 'ms_a_step': 1e3 * whole}


def jobs(results: Results, networks: list[str], smoke: bool) -> Iterator[Callable[[], None]]:
  """Yields the measurements to make, the most important first."""
  batches = SMOKE if smoke else BATCHES
  sampled = SMOKE if smoke else SAMPLED
  too_large = {}

  def train(network, stage, batch, **settings):
    if batch >= too_large.get((network, stage), float('inf')):
      return
    found = training(results, network, stage, batch, **settings)
    if found is None and not settings and results.out_of_memory():
      too_large[network, stage] = batch

  def sizes(i):
    for network in networks:
      for stage in STAGES if i < len(batches[network]) else ():
        yield lambda network=network, stage=stage: train(network, stage, batches[network][i])
      if i < len(sampled[network]):
        yield lambda network=network: sampling(results, network, sampled[network][i])

  def slowest(some):
    for network in some:
      yield lambda network=network: convolutions(results, network, batches[network][0], 70.0)

  yield lambda: ceilings(results, smoke)
  yield from sizes(0)
  yield from slowest(networks[:1])
  yield from sizes(1)
  yield from slowest(networks[1:])
  for network in networks:
    choices = (dict(one_batch=True), dict(one_batch=False), dict(ws_per_pass=2))
    for settings in choices[:1] if smoke else choices:
      yield lambda network=network, settings=settings: train(
        network, 'guidance', batches[network][0], **settings
      )
  for i in (2, 3):
    yield from sizes(i)


def table(found: dict) -> str:
  """Returns the measurements as a Markdown table."""
  lines = [
    '| what | ms | images/s | TFLOP/s | share of peak | peak memory |',
    '|---|---|---|---|---|---|',
  ]

  def line(what, m):
    share = '' if m.get('share') is None else f'{100 * m["share"]:.1f} %'
    images = f'{m["images_a_second"]:.1f}' if 'images_a_second' in m else ''
    rate = f'{m["tflops"]:.4g}' if 'tflops' in m else f'{m["gigabytes_a_second"]:.4g} GB/s'
    memory = f'{m["peak_bytes"] / 1e9:.2f} GB' if 'peak_bytes' in m else ''
    lines.append(f'| {what} | {m["ms"]:.3g} | {images} | {rate} | {share} | {memory} |')

  for m in found['measured']:
    if 'ms' in m:
      line(m['what'], m)
    for steps in (4, 1):
      if f'{steps}_steps' in m:
        line(f'{m["what"]}, {steps} steps', m[f'{steps}_steps'])
  if 'slowest_convolutions' in found:
    lines += ['', '| convolution | in the network | forward, input, weight: TFLOP/s | ms a step |']
    lines.append('|---|---|---|---|')
  for network, ten in found.get('slowest_convolutions', {}).items():
    for m in ten['ten']:
      rates = ', '.join(f'{m[d]["tflops"]:.4g}' for d in ('forward', 'input', 'weight'))
      what = f'{m["what"]}, batch {ten["batch"]}' if network not in m['what'] else m['what']
      lines.append(f'| {what} | {m["times_in_the_network"]} | {rates} | {m["ms_a_step"]:.3g} |')
  for m in found['left_out']:
    lines.append(f'\nleft out: {m["what"]}: {m["why"]}')
  return '\n'.join(lines)


def main() -> None:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  p.add_argument('--seconds', type=float, default=520.0, help='time limit of the script')
  p.add_argument('--out', default='accelerator.json')
  p.add_argument('--peak', type=float, help='peak TFLOP/s of the device, if the script has none')
  p.add_argument(
    '--networks', default='imagenet64,cifar10', help='networks to measure, the most important first'
  )
  p.add_argument('--smoke', action='store_true', help='tiny sizes: shows only that the script runs')
  args = p.parse_args()
  kind = jax.devices()[0].device_kind
  peak = args.peak or next((v for name, v in PEAKS.items() if kind.startswith(name)), None)
  results = Results(args.out, args.seconds, peak)
  watch = threading.Timer(args.seconds, results.stop)
  watch.daemon = True
  watch.start()
  networks = list(SMOKE) if args.smoke else args.networks.split(',')
  for job in jobs(results, networks, args.smoke):
    job()
  watch.cancel()
  results.show()


if __name__ == '__main__':
  main()
