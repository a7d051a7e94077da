"""Meng et al.'s two-stage distillation on CIFAR-10: 32x32 photographs, ten classes.

  python -m gdistill.main --config=configs/cifar10.py --workdir=gs://BUCKET/cifar10

The data set is read by TensorFlow Datasets and must be prepared once (`pip install tensorflow`,
then `tfds build cifar10`). Any folder or archive of `<split>/<class>/<picture>` works instead:

  --config.data.name=folder --config.data.path=FOLDER_OR_ARCHIVE

Variants, after a colon: `stochastic` (stage two distils for the stochastic sampler), `single_w`
(students are distilled for w = 1 alone and have no input for w), `naive` (no stage one: the
unguided teacher is halved, and guidance is applied when sampling), `small` (network and training
budget for one small machine), `tiny` (every stage takes seconds, for tests: sizes change, never
the method).

Hardware assumed: 8 accelerator chips or one GPU; compiled for TPU v5e:2x4, stage one takes 1.1 GB
of a chip (docs/pods.md). `small`: two CPU cores, on which it took an hour beside other work.
Result: not run yet. `small`: at w = 1, FD-lite0 to the teacher's 64-step images (1,000 of them) is
9.8 for the student's 4 steps and 60 for the teacher's own 4 steps; docs/cifar10_small.md has more.

Sources: network, batch size, dropout, optimiser, and the rounds and learning rates of stage two
are Salimans & Ho's, arXiv 2202.00512. w in [0, 4] and the two stages are Meng et al.'s, arXiv
2210.03142. Neither paper says how long stage one takes: 100,000 updates is our choice.
"""

import ml_collections

from configs import common

VARIANTS = ('', 'stochastic', 'single_w', 'naive', 'small', 'tiny')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  common.check(variant, VARIANTS)
  training = dict(  # shared by the stages; a stage below may override a value
    batch_size=128, accumulation=1, anneal=False, warmup=0, beta1=0.9, beta2=0.999, adam_eps=1e-8,
    weight_decay=0.0, grad_clip=1.0,
  )  # fmt: skip
  config = dict(
    seed=0,
    stages=('teacher', 'guidance', 'progressive'),
    initial='',  # folder of a finished round to start from, if `stages` has no teacher first
    data=dict(
      name='tfds', dataset='cifar10', path='', split='train', held_out_split='test', held_out=0.0,
      flip=True, workers=4, threads=4, prefetch=4,
    ),
    noise=dict(name='cosine', logsnr_min=-20.0, logsnr_max=20.0),
    model=dict(
      image_size=32, image_channels=3, num_classes=10,
      channels=256, multipliers=(1, 1, 1), num_blocks=3, attention_resolutions=(16, 8),
      emb_channels=1024, heads=1, head_dim=None, groups=32, dropout=0.2,
      w_features=256, w_scale=1000.0, dtype='bfloat16', predict='v',
    ),
    teacher=dict(
      training, steps=800_000, lr=2e-4, warmup=1000, weight_decay=0.001, ema=0.9999,
      weight='snr_trunc', p_uncond=0.1,
    ),
    guidance=dict(
      training, steps=100_000, lr=1e-3, ema=0.9999, weight='snr',
      w_min=0.0, w_max=4.0, ws_per_pass=1, state='data', trajectory_steps=16, one_batch=True,
    ),
    progressive=dict(
      training, steps=50_000, lr=5e-5, anneal=True, ema=0.0, weight='snr_trunc',
      start_steps=1024, end_steps=1, sampler='deterministic', state='data',
      last_steps=100_000, last_lr=5e-5,  # of the rounds for 2 and 1 sampling steps
    ),
    mesh=dict(data=-1, fsdp=1),
    train=dict(
      substeps=10, checkpoint_every=5000, max_to_keep=2, log_every=100,
      max_skipped_in_a_row=20, max_skipped_percent=1.0,
    ),
    evaluation=dict(
      ws=(0.0, 0.3, 1.0, 2.0, 4.0), num_steps=(1, 2, 4, 8, 16), batch_size=500,
      quick_images=500, quick_reference_steps=128, full_images=5000, full_reference_steps=1024,
    ),
  )  # fmt: skip
  common.method(config, variant)
  if variant == 'small':
    # A small budget needs larger learning rates, annealed in every stage, and a smaller beta2; no
    # dropout, and more dropped labels; a shorter EMA, in stage two as well; one loss weight for all
    # stages; a ladder from 32 steps; and w_power and clip_x_hat, which docs/digits.md explains.
    config['model'].update(
      channels=16, multipliers=(1, 2, 2), num_blocks=1, attention_resolutions=(8,),
      emb_channels=128, groups=8, dropout=0.0, w_features=64, w_scale=4.0, dtype='float32',
    )  # fmt: skip
    for stage, steps, lr, ema in (
      ('teacher', 2000, 1.5e-3, 0.998),
      ('guidance', 500, 1e-3, 0.99),
      ('progressive', 160, 5e-4, 0.98),
    ):
      config[stage].update(
        steps=steps, lr=lr, ema=ema, batch_size=64, beta2=0.99, anneal=True, weight='snr_trunc'
      )
    config['teacher'].update(p_uncond=0.15, warmup=100, weight_decay=0.0)
    config['guidance'].update(w_power=1.5, clip_x_hat=True, one_batch=False)
    config['progressive'].update(
      start_steps=32, w_power=1.5, clip_x_hat=True, last_steps=300, last_lr=1e-3
    )
    config['data'].update(workers=0, threads=2)
    config['mesh'].update(cpu_devices=2)
    config['train'].update(substeps=1, checkpoint_every=200, log_every=20)
    config['evaluation'].update(
      ws=(0.0, 1.0, 4.0), num_steps=(1, 2, 4, 8), batch_size=50, real_images=2000,
      quick_images=200, quick_reference_steps=64, full_images=1000, full_reference_steps=64,
    )  # fmt: skip
  if variant == 'tiny':
    common.tiny(config, channels=8, attention_resolutions=(8,))
    config['data'].update(workers=0, threads=1)
  return ml_collections.ConfigDict(config)
