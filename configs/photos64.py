"""The method of imagenet64.py, at a smaller size, on any folder of photographs sorted by class.

  python -m gdistill.main --config=configs/photos64.py --workdir=runs/photos \\
    --config.data.path=FOLDER_OR_ARCHIVE --config.model.num_classes=N

FOLDER_OR_ARCHIVE is a folder, or a tar or zip archive, of `train/<class>/<picture>` and
`validation/<class>/<picture>`. Pictures are JPEG, PNG, WebP, BMP, GIF, TIFF or AVIF files of any
size: the centre square is resized to 64x64 when a picture is read. `gdistill prepare` turns
pictures into records, which are read faster: --config.data.name=records. For data without a
validation split, give --config.data.held_out=0.1.

Variants, after a colon: `stochastic`, `single_w`, `naive` as in imagenet64.py, `small` (network and
training budget for one small machine), `tiny` (every stage takes seconds, for tests).

Differences from imagenet64.py: 128 channels, two blocks, batch 256, a ladder from 256 steps and
shorter stages. Stage one weighs the loss by SNR + 1 (`small`: by the truncated SNR).

Hardware assumed: one accelerator of 80 GB; compiled for one TPU v5p (v5p:1x1x1), stage one takes
30.5 GB (docs/pods.md). `small`: two CPU cores for a few hours.
Result: not run yet.
"""

import ml_collections

from configs import common

VARIANTS = ('', 'stochastic', 'single_w', 'naive', 'small', 'tiny')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  common.check(variant, VARIANTS)
  training = dict(  # shared by the stages; a stage below may override a value
    batch_size=256, accumulation=1, anneal=False, warmup=0, beta1=0.9, beta2=0.999, adam_eps=1e-8,
    weight_decay=0.0, grad_clip=1.0,
  )  # fmt: skip
  config = dict(
    seed=0,
    stages=('teacher', 'guidance', 'progressive'),
    initial='',  # folder of a finished round to start from, if `stages` has no teacher first
    data=dict(
      name='folder', path='data/photos', split='train', held_out_split='validation',
      held_out=0.0, flip=True, workers=4, threads=4, prefetch=4,
    ),
    noise=dict(name='cosine', logsnr_min=-20.0, logsnr_max=20.0),
    model=dict(
      image_size=64, image_channels=3, num_classes=20,
      channels=128, multipliers=(1, 2, 3, 4), num_blocks=2, attention_resolutions=(32, 16, 8),
      emb_channels=512, heads=None, head_dim=64, groups=32, dropout=0.1,
      w_features=256, w_scale=1000.0, dtype='bfloat16', predict='v',
    ),
    teacher=dict(
      training, steps=100_000, lr=3e-4, warmup=1000, ema=0.9999,
      weight='snr_trunc', p_uncond=0.1,
    ),
    guidance=dict(
      training, steps=20_000, lr=3e-4, ema=0.9999, weight='snr_plus_one',
      w_min=0.0, w_max=4.0, ws_per_pass=1, state='data', trajectory_steps=16, one_batch=True,
    ),
    progressive=dict(
      training, steps=10_000, lr=1e-4, anneal=True, ema=0.0, weight='snr_trunc',
      start_steps=256, end_steps=1, sampler='deterministic', state='data',
      last_steps=20_000, last_lr=1e-4,  # of the rounds for 2 and 1 sampling steps
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
      channels=32, multipliers=(1, 1, 2, 2), num_blocks=1, attention_resolutions=(8,),
      emb_channels=128, heads=1, head_dim=None, groups=8, dropout=0.0, w_features=64, w_scale=4.0,
      dtype='float32',
    )  # fmt: skip
    for stage, steps, lr, ema in (
      ('teacher', 4000, 1e-3, 0.998),
      ('guidance', 1200, 1e-3, 0.99),
      ('progressive', 400, 5e-4, 0.98),
    ):
      config[stage].update(
        steps=steps, lr=lr, ema=ema, batch_size=32, beta2=0.99, anneal=True, weight='snr_trunc'
      )
    config['teacher'].update(p_uncond=0.15, warmup=100)
    config['guidance'].update(w_power=1.5, clip_x_hat=True, one_batch=False)
    config['progressive'].update(
      start_steps=32, w_power=1.5, clip_x_hat=True, last_steps=800, last_lr=1e-3
    )
    config['data'].update(workers=0, threads=2)
    config['mesh'].update(cpu_devices=2)
    config['train'].update(substeps=1, checkpoint_every=200, log_every=20)
    config['evaluation'].update(
      ws=(0.0, 1.0, 3.0), num_steps=(1, 2, 4, 8), batch_size=50, real_images=2000,
      quick_images=100, quick_reference_steps=64, full_images=1000, full_reference_steps=128,
    )  # fmt: skip
  if variant == 'tiny':
    common.tiny(config, channels=8, attention_resolutions=(8,), heads=1, head_dim=None)
    config['data'].update(workers=0, threads=1)
  return ml_collections.ConfigDict(config)
