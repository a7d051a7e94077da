"""Meng et al.'s two-stage distillation on ImageNet 64: 64x64 photographs, a thousand classes.

  gdistill prepare --source=IMAGENET --out=data/imagenet64 --size=64
  python -m gdistill.main --config=configs/imagenet64.py --workdir=gs://BUCKET/imagenet64

The records may be in any folder that every host can read: --config.data.path=FOLDER.

Variants, after a colon: `stochastic` (stage two distils for the stochastic sampler), `single_w`
(students are distilled for w = 1 alone and have no input for w), `naive` (no stage one: the
unguided teacher is halved, and guidance is applied when sampling), `tiny` (every stage takes
seconds, for tests: sizes change, never the method).

Hardware assumed: 128 TPU v4 chips; compiled for v4:4x4x8, stage one takes 7.6 of the 34 GB of a
chip (docs/pods.md). With fewer chips, raise `accumulation` of each stage or set
--config.train.remat=blocks; --plan --topology shows what a chip then needs.
Result: not run yet.

Sources: network, batch size, dropout, optimiser, and the rounds and learning rates of stage two
are Salimans & Ho's, arXiv 2202.00512. w in [0, 4] and the two stages are Meng et al.'s, arXiv
2210.03142. Neither paper says how long stage one takes: 100,000 updates is our choice.
"""

import ml_collections

from configs import common

VARIANTS = ('', 'stochastic', 'single_w', 'naive', 'tiny')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  common.check(variant, VARIANTS)
  training = dict(  # shared by the stages; a stage below may override a value
    batch_size=2048, accumulation=1, anneal=False, warmup=0, beta1=0.9, beta2=0.999, adam_eps=1e-8,
    weight_decay=0.0, grad_clip=1.0,
  )  # fmt: skip
  config = dict(
    seed=0,
    stages=('teacher', 'guidance', 'progressive'),
    initial='',  # folder of a finished round to start from, if `stages` has no teacher first
    data=dict(
      name='records', path='data/imagenet64', split='train', held_out_split='validation',
      held_out=0.0, flip=True, workers=8, threads=4, prefetch=4,
    ),
    noise=dict(name='cosine', logsnr_min=-20.0, logsnr_max=20.0),
    model=dict(
      image_size=64, image_channels=3, num_classes=1000,
      channels=192, multipliers=(1, 2, 3, 4), num_blocks=3, attention_resolutions=(32, 16, 8),
      emb_channels=768, heads=None, head_dim=64, groups=32, dropout=0.1,
      w_features=256, w_scale=1000.0, dtype='bfloat16', predict='v',
    ),
    teacher=dict(
      training, steps=550_000, lr=3e-4, warmup=1000, ema=0.9999,
      weight='snr_trunc', p_uncond=0.1,
    ),
    guidance=dict(
      training, steps=100_000, lr=3e-4, ema=0.9999, weight='snr',
      w_min=0.0, w_max=4.0, ws_per_pass=1, state='data', trajectory_steps=16, one_batch=True,
    ),
    progressive=dict(
      training, steps=50_000, lr=1e-4, anneal=True, ema=0.0, weight='snr_trunc',
      start_steps=1024, end_steps=1, sampler='deterministic', state='data',
      last_steps=100_000, last_lr=1e-4,  # of the rounds for 2 and 1 sampling steps
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
  if variant == 'tiny':
    common.tiny(config, channels=8, attention_resolutions=(8,), heads=1, head_dim=None)
    config['data'].update(workers=0, threads=1)
  return ml_collections.ConfigDict(config)
