"""P15: pictures per second through FID's Inception-v3, against torch-fidelity's network.

  pip install -e '.[parity]'; pip install --no-deps torch-fidelity==0.4.0
  python benchmarks/features.py

Both networks have the same weights and get the same pictures, resizing included. On the CPU both
use the same number of threads.
"""

import os

import common
import jax
import numpy as np
import torch
import torch_inception
from flax import linen as nn

from gdistill.convert import inception
from gdistill.evaluation.features import extractors
from gdistill.models import inception as models


def main() -> None:
  args = common.parser(__doc__).parse_args()
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  common.settle(args, devices=1)
  torch.set_num_threads(cores)
  net = torch_inception.network(('2048', 'logits_unbiased'))
  params = inception.params_from({k: v.numpy() for k, v in net.state_dict().items()})
  ours = extractors.of_inception(params, {'sha256': 'random'})
  batch = 2 if args.smoke else 16
  chw = torch_inception.pictures(64, batch)
  hwc, chw = np.moveaxis(chw, 1, -1).copy(), torch.from_numpy(chw)

  def theirs():
    with torch.inference_mode():
      return net(chw)

  convolutions, inputs = _convolutions(params, batch)
  calls = {
    'ours': lambda: jax.block_until_ready(ours(hwc)),
    'torch-fidelity': theirs,
    'convolutions': lambda: jax.block_until_ready(convolutions(params, inputs)),
  }
  taken = common.interleaved(calls, args.repeats, args.seconds)
  rows = [
    common.row(
      'P15', f'pictures a second over torch-fidelity, {batch} of 64 x 64',
      common.ratios(taken['torch-fidelity'], taken['ours']),
      '>= 1.0' if jax.default_backend() != 'cpu' else '',
    ),
    common.row('P15', 'share of its convolutions, run alone',
               common.ratios(taken['convolutions'], taken['ours'])),
    common.row('P15', 'ours', [batch / t for t in taken['ours']], unit='pictures/s'),
  ]  # fmt: skip
  common.show(rows, seconds=common.medians(taken), torch=torch.__version__, threads=cores)


def _convolutions(params, batch: int):
  """Returns (call, inputs) that run only the network's convolutions, on inputs of their shapes."""
  found = []

  def note(call, args, kwargs, context):
    if isinstance(context.module, nn.Conv):
      found.append((context.module.name, args[0].shape, context.module.clone(parent=None)))
    return call(*args, **kwargs)

  x = jax.ShapeDtypeStruct((batch, models.SIZE, models.SIZE, 3), np.float32)
  with nn.intercept_methods(note):
    jax.eval_shape(lambda x: models.Inception().apply({'params': params}, x), x)
  rng = np.random.default_rng(0)
  inputs = [rng.normal(size=shape).astype(np.float32) for _, shape, _ in found]

  @jax.jit
  def call(params, inputs):
    return [
      net.apply({'params': params[name]}, x).sum()
      for (name, _, net), x in zip(found, inputs, strict=True)
    ]

  return call, jax.device_put(inputs)


if __name__ == '__main__':
  main()
