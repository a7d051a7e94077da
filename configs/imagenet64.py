"""The paper on ImageNet 64: 64x64 photographs, a thousand classes.

  gdistill prepare --source=IMAGENET --out=data/imagenet64 --size=64
  python -m gdistill.main --config=configs/imagenet64.py --workdir=gs://BUCKET/imagenet64

The records may lie anywhere every host sees: --config.data.path=FOLDER.

Variants, after a colon: `stochastic` (stage two for the stochastic sampler), `single_w` (one fixed
w, no w input), `naive` (halve the unguided network, guide afterwards), `tiny` (every stage in
seconds, for tests: sizes change, never the method).

Hardware assumed: 128 TPU v4 chips or more; with fewer, set `accumulation` of each stage or
--config.train.remat=blocks, and see --plan. Result: not run yet.

Network, batch, dropout, optimiser, stage-two rates and rounds are Salimans & Ho's, 2202.00512;
w in [0, 4] and the two stages Meng et al.'s, 2210.03142. Neither says how long stage one
takes: 100,000 updates is our choice.
"""

import ml_collections

VARIANTS = ('', 'stochastic', 'single_w', 'naive', 'tiny')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  if variant not in VARIANTS:
    raise ValueError(f'{variant=} must be empty or one of {", ".join(VARIANTS[1:])}')

  def training(steps, lr, ema, weight, **more):
    return dict(
      steps=steps, batch_size=2048, accumulation=1, lr=lr, anneal=False, warmup=0, ema=ema,
      beta1=0.9, beta2=0.999, adam_eps=1e-8, weight_decay=0.0, grad_clip=1.0, weight=weight, **more,
    )  # fmt: skip

  config = dict(
    seed=0,
    stages=('teacher', 'guidance', 'progressive'),
    initial='',  # the folder of a finished round, when stages does not begin with a teacher
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
    teacher=training(550_000, 3e-4, 0.9999, 'snr_trunc', p_uncond=0.1),
    guidance=training(
      100_000, 3e-4, 0.9999, 'snr',
      w_min=0.0, w_max=4.0, ws_per_pass=1, state='data', trajectory_steps=16, one_batch=True,
    ),
    progressive=training(
      50_000, 1e-4, 0.0, 'snr_trunc',
      start_steps=1024, end_steps=1, sampler='deterministic', state='data',
      last_steps=100_000, last_lr=1e-4,  # of the rounds for 2 and 1 steps
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
  config['teacher'].update(warmup=1000)
  config['progressive'].update(anneal=True)
  if variant == 'stochastic':
    config['progressive'].update(sampler='stochastic')
  if variant == 'single_w':
    config['guidance'].update(w_min=1.0, w_max=1.0)
    config['evaluation']['ws'] = (1.0,)
  if variant == 'naive':
    config['stages'] = ('teacher', 'progressive')
  if variant == 'tiny':
    config['model'].update(
      channels=8, num_blocks=1, attention_resolutions=(8,), emb_channels=16, heads=1,
      head_dim=None, w_features=8, groups=4, dtype='float32',
    )  # fmt: skip
    config['data'].update(workers=0, threads=1)
    for stage, steps in (('teacher', 6), ('guidance', 4), ('progressive', 4)):
      config[stage].update(steps=steps, batch_size=8, warmup=0)
    config['progressive'].update(last_steps=4, start_steps=4)
    config['train'].update(substeps=1, checkpoint_every=2, log_every=2)
    config['evaluation'].update(
      ws=(0.0, 2.0), num_steps=(1, 2), batch_size=20, real_images=200,
      quick_images=20, quick_reference_steps=4, full_images=40, full_reference_steps=8,
    )  # fmt: skip
  return ml_collections.ConfigDict(config)
