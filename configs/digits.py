"""The whole method on 1,797 real handwritten digits, on a laptop.

  python -m gdistill.main --config=configs/digits.py --workdir=runs/digits

Variants, after a colon: `stochastic` (stage two distils for the stochastic sampler), `single_w`
(students are distilled for w = 1 alone and have no input for w), `naive` (no stage one: the
unguided teacher is halved, and guidance is applied when sampling), `inpainting` (networks take a
mask and the masked picture as extra input, for gdistill inpaint), `tiny` (every stage takes
seconds, for tests: sizes change, never the method), `inpainting_tiny` (both).

Hardware assumed: two CPU cores, on which it took 405 seconds.
Result: FD to the training digits at w = 1, over 2,000 images: guided teacher at 256 DDIM steps
10.7; student at 4, 2, 1 steps 11.3, 11.3, 11.4; teacher at only 4 DDIM steps 19.6. docs/digits.md
has the other figures, also for `stochastic` and `naive`. docs/editing.md has the figures for
`inpainting` and for the encoder's ladder. `single_w`: not run yet.

Two settings of stage one and stage two are not the paper's, w_power and clip_x_hat: docs/digits.md
gives the reasons. w_power=0 and clip_x_hat=False are the paper's.
"""

import ml_collections

from configs import common

VARIANTS = (
  '', 'stochastic', 'single_w', 'naive', 'inpainting', 'tiny', 'inpainting_tiny',
)  # fmt: skip


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  common.check(variant, VARIANTS)
  training = dict(  # shared by the stages; a stage below may override a value
    batch_size=64, accumulation=1, anneal=True, warmup=0, beta1=0.9, beta2=0.99, adam_eps=1e-8,
    weight_decay=0.0, grad_clip=1.0,
  )  # fmt: skip
  config = dict(
    seed=0,
    stages=('teacher', 'guidance', 'progressive'),
    initial='',  # folder of a finished round to start from, if `stages` has no teacher first
    data=dict(name='digits', held_out=0.2),
    noise=dict(name='cosine', logsnr_min=-20.0, logsnr_max=20.0),
    model=dict(
      image_size=8, image_channels=1, num_classes=10,
      channels=32, multipliers=(1, 1), num_blocks=1, attention_resolutions=(), emb_channels=128,
      heads=1, head_dim=None, groups=4, dropout=0.1, w_features=64, w_scale=4.0,
      dtype='float32', predict='v',
    ),
    teacher=dict(training, steps=900, lr=2e-3, ema=0.995, weight='snr_trunc', p_uncond=0.2),
    guidance=dict(
      training, steps=1450, lr=2e-3, ema=0.98, weight='snr_trunc',
      w_min=0.0, w_max=4.0, w_power=1.5, clip_x_hat=True, ws_per_pass=1, state='data',
      trajectory_steps=16, one_batch=False,
    ),
    progressive=dict(
      training, steps=260, lr=8e-4, ema=0.98, weight='snr_trunc',
      start_steps=64, end_steps=1, w_power=2.0, clip_x_hat=True, sampler='deterministic',
      state='data', last_steps=420,
      last_lr=2e-3,  # of the rounds for 2 and 1 sampling steps, in place of lr
    ),
    mesh=dict(data=-1, fsdp=1, cpu_devices=2),
    train=dict(
      substeps=1, checkpoint_every=500, max_to_keep=2, log_every=20,
      max_skipped_in_a_row=20, max_skipped_percent=5.0,
    ),
    evaluation=dict(
      ws=(0.0, 0.3, 1.0, 2.0, 4.0), num_steps=(1, 2, 4, 8, 16), batch_size=250,
      quick_images=500, quick_reference_steps=64, full_images=2000, full_reference_steps=256,
    ),
  )  # fmt: skip
  common.method(config, variant)
  if variant == 'stochastic':
    # The stochastic sampler jumps by 2/N, so N of its steps are as hard to learn as N/2 steps of
    # the deterministic sampler.
    config['progressive'].update(steps=400, lr=1e-3, last_steps=1000)
  if variant == 'single_w':
    config['guidance'].update(w_power=0.0)
    config['progressive'].update(w_power=0.0)
  if variant == 'naive':
    config['progressive'].update(w_power=0.0, clip_x_hat=False)
  if variant.startswith('inpainting'):
    config['model'].update(extra_channels=2)  # the mask, and the masked picture of one channel
  if variant.endswith('tiny'):
    config['model'].update(channels=8, emb_channels=16, w_features=8, groups=4)
    config['teacher'].update(steps=12, batch_size=16)
    config['guidance'].update(steps=8, batch_size=16)
    config['progressive'].update(steps=4, last_steps=6, start_steps=8, batch_size=16)
    config['train'].update(checkpoint_every=4, log_every=2)
    config['evaluation'].update(
      ws=(0.0, 2.0), num_steps=(1, 2, 4), batch_size=20,
      quick_images=40, quick_reference_steps=8, full_images=60, full_reference_steps=16,
    )  # fmt: skip
  return ml_collections.ConfigDict(config)
