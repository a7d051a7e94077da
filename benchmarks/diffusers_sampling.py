"""P6: our 4-step sampler against diffusers' network of the same layers in PyTorch, float32.

  pip install -e '.[parity]'
  python benchmarks/diffusers_sampling.py

UNet2DModel with residual resampling and scale-shift has the same layers as our U-Net, and as many
parameters. Our network also takes w, which costs one small matrix product per call.
"""

import math
import os

import common
import diffusers
import numpy as np
import torch

STEPS = 4


def twin(settings) -> diffusers.UNet2DModel:
  """Returns diffusers' network with the settings of our network."""
  s, levels = settings, range(len(settings.multipliers))
  attends = [s.image_size // 2**i in s.attention_resolutions for i in levels]
  width = s.channels * s.multipliers[-1]
  return diffusers.UNet2DModel(
    sample_size=s.image_size,
    in_channels=s.image_channels,
    out_channels=s.image_channels,
    block_out_channels=tuple(s.channels * m for m in s.multipliers),
    layers_per_block=s.num_blocks,
    down_block_types=tuple('AttnDownBlock2D' if a else 'ResnetDownsampleBlock2D' for a in attends),
    up_block_types=tuple(
      'AttnUpBlock2D' if a else 'ResnetUpsampleBlock2D' for a in reversed(attends)
    ),
    downsample_type='resnet',
    upsample_type='resnet',
    resnet_time_scale_shift='scale_shift',
    attention_head_dim=s.head_dim or width // s.heads,
    norm_num_groups=s.groups,
    norm_eps=1e-6,
    num_class_embeds=s.num_classes,
  ).eval()


@torch.inference_mode()
def draw(net: diffusers.UNet2DModel, z: torch.Tensor, label: torch.Tensor) -> np.ndarray:
  """Returns pixels drawn by DDIM rotations in v, with x_hat clipped, in STEPS steps."""
  for i in range(STEPS, 0, -1):
    phi, to = (max(1e-4, j / STEPS * math.pi / 2 - 1e-4) for j in (i, i - 1))
    to = to if i > 1 else 0.0
    v = net(z, torch.full((len(z),), 1000.0 * i / STEPS), label).sample
    x_hat = (math.cos(phi) * z - math.sin(phi) * v).clamp(-1.0, 1.0)
    eps_hat = (z - math.cos(phi) * x_hat) / math.sin(phi)
    z = math.cos(to) * x_hat + math.sin(to) * eps_hat
  return ((z + 1.0) * 127.5).round().to(torch.uint8).numpy()


def main() -> None:
  args = common.parser(__doc__).parse_args()
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  common.settle(args, devices=cores)
  torch.set_num_threads(cores)
  network, batch = ('tiny', 2) if args.smoke else ('small128', 16)
  recipe = common.recipe(network)
  read = common.folder(recipe, 'progressive')
  ours = common.sampler(read, batch)
  seeds, labels, w = np.arange(batch), np.arange(batch) % recipe.model.num_classes, np.ones(batch)
  variants = {'ours': lambda: ours(seeds, labels, w, STEPS)}
  theirs = twin(recipe.model)
  for name, layout in (('first', torch.contiguous_format), ('last', torch.channels_last)):
    # A network of its own for each layout, because both layouts are timed in turns.
    net = twin(recipe.model).to(memory_format=layout)
    z = torch.randn(
      batch, 3 if network != 'tiny' else 1, recipe.model.image_size, recipe.model.image_size
    )
    z, label = z.contiguous(memory_format=layout), torch.from_numpy(labels)
    variants[f'channels {name}'] = lambda net=net, z=z, label=label: draw(net, z, label)
  taken = common.interleaved(variants, args.repeats, args.seconds)
  middle = common.medians(taken)
  best = min([n for n in variants if n != 'ours'], key=middle.get)
  text = f'{STEPS}-step sampling over diffusers {diffusers.__version__}, eager, {best}, {network}'
  values = common.ratios(taken['ours'], taken[best])
  rows = [common.row('P6', f'{text}, batch {batch}', values, '<= 1.25')]
  parameters = {
    'ours': common.count(read.params),
    'theirs': sum(p.numel() for p in theirs.parameters()),
  }
  common.show(rows, seconds=middle, parameters=parameters, torch=torch.__version__)


if __name__ == '__main__':
  main()
