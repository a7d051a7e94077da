"""P4: our stage-one step against the same step of the same network in PyTorch, float32.

  pip install -e '.[parity]'
  python benchmarks/torch_step.py

Both use the same number of threads. PyTorch runs eagerly and compiled, each in the faster of two
memory formats. Our step runs on one device with all threads, and, as configs/digits.py does, with
one device per core and the batch split over the devices.
"""

import copy
import os
import statistics

import common
import jax
import torch
import torch_unet


class TorchStep:
  """A stage-one update in PyTorch: two teacher forwards, loss, gradient, clip, Adam and EMA."""

  def __init__(self, step: common.Step, compiled: bool, channels_last: bool):
    settings, self._w_max = step.recipe.model, step.recipe.guidance.w_max
    self._layout = torch.channels_last if channels_last else torch.contiguous_format
    self._student = torch_unet.load(torch_unet.UNet(settings, True), step.params)
    self._teacher = torch_unet.load(
      torch_unet.UNet(settings, False), jax.device_get(step.teacher)
    ).requires_grad_(False)
    for net in (self._student, self._teacher):
      net.to(memory_format=self._layout)
    self._ema = [copy.deepcopy(p.data) for p in self._student.parameters()]
    s = step.settings
    self._clip, self._decay = s.grad_clip, s.ema
    self._adam = torch.optim.Adam(
      self._student.parameters(), 1e-4, (s.beta1, s.beta2), s.adam_eps, fused=True
    )
    batch = step.host_batch()
    self._pixels = torch.from_numpy(batch['pixels'][0]).permute(0, 3, 1, 2)
    self._label = torch.from_numpy(batch['label'][0]).long()
    wrap = torch.compile if compiled else lambda f: f
    self._loss, self._target = wrap(self._loss_of), wrap(self._target_of)

  def _target_of(self, z, logsnr, w):
    v_cond = self._teacher(z, logsnr, self._label, w)
    v_null = self._teacher(z, logsnr, torch.full_like(self._label, -1), w)
    return v_cond + w[:, None, None, None] * (v_cond - v_null)

  def _loss_of(self, z, logsnr, w, target):
    error = torch.mean(torch.square(self._student(z, logsnr, self._label, w) - target), (1, 2, 3))
    alpha2 = torch.sigmoid(logsnr)
    return torch.mean(torch.maximum(alpha2, 1.0 - alpha2) * error)

  def __call__(self) -> None:
    x = (self._pixels.float() / 127.5 - 1.0).contiguous(memory_format=self._layout)
    phi = (torch.rand(len(x)) * (torch.pi / 2)).clamp(1e-4, torch.pi / 2 - 1e-4)
    logsnr, w = -2.0 * torch.log(torch.tan(phi)), torch.rand(len(x)) * self._w_max
    phi = phi[:, None, None, None]
    z = torch.cos(phi) * x + torch.sin(phi) * torch.randn_like(x)
    with torch.no_grad():
      target = self._target(z, logsnr, w)
    self._adam.zero_grad(set_to_none=True)
    loss = self._loss(z, logsnr, w, target)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(self._student.parameters(), self._clip, foreach=True)
    self._adam.step()
    torch._foreach_lerp_(self._ema, [p.data for p in self._student.parameters()], 1 - self._decay)
    loss.item()


def main() -> None:
  args = common.parser(__doc__).parse_args()
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  common.settle(args, devices=cores)
  torch.set_num_threads(cores)
  rows, details = [], {'torch': torch.__version__, 'threads': cores}
  sizes = (('tiny', 4),) if args.smoke else (('small32', 32), ('small128', 8))
  for network, batch in sizes:
    recipe = common.recipe(network, batch, guidance=dict(clip_x_hat=False, w_power=0.0))
    one = common.Step(recipe, 'guidance')
    split = common.Step(recipe, 'guidance', devices=cores)
    variants = {'ours, 1 device': one, f'ours, {cores} devices': split}
    for compiled in (False,) if args.smoke else (False, True):
      both = {last: TorchStep(one, compiled, last) for last in (False, True)}
      quick = common.interleaved(both, 1 if args.smoke else 3, args.seconds)
      best = min(both, key=lambda last: statistics.median(quick[last]))
      name = 'torch, compiled' if compiled else 'torch, eager'
      variants[name] = both[best]
      details[f'{network}, {name}'] = 'channels last' if best else 'channels first'
    taken = common.interleaved(variants, args.repeats, args.seconds)
    for theirs in [name for name in variants if name.startswith('torch')]:
      for ours in [name for name in variants if name.startswith('ours')]:
        # The bar applies to one device per core, as in configs/digits.py.
        bar = '<= 1.15' if network == 'small128' and ours != 'ours, 1 device' else ''
        values = common.ratios(taken[ours], taken[theirs])
        rows.append(
          common.row('P4', f'{ours} over {theirs}, {network}, batch {batch}', values, bar)
        )
    details[f'{network}_seconds'] = common.medians(taken)
  common.show(rows, **details)


if __name__ == '__main__':
  main()
