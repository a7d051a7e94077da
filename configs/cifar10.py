"""The paper on CIFAR-10: 32x32 photographs, ten classes.

  python -m gdistill.main --config=configs/cifar10.py --workdir=gs://BUCKET/cifar10

Needs the data set prepared once by TensorFlow Datasets (`pip install tensorflow`, then
`tfds build cifar10`), or any folder or archive of `<split>/<class>/<picture>`:

  --config.data.name=folder --config.data.path=FOLDER_OR_ARCHIVE

Variants, after a colon: `stochastic` (stage two for the stochastic sampler), `single_w` (one fixed
w, no w input), `naive` (halve the unguided network, guide afterwards), `small` (network and budget
for one small machine), `tiny` (every stage in seconds, for tests: sizes change, never the method).

Hardware assumed: 8 accelerator chips or one GPU; `small`: two CPU cores, which took an hour
beside other work.
Result: not run yet; `small`: in 4 steps at w = 1 its student is at 9.8 from the teacher's 64-step
pictures (FD-lite0, 1,000 of them) where its own 4 steps are at 60; docs/cifar10_small.md.

Network, batch, dropout, optimiser, stage-two rates and rounds are Salimans & Ho's, 2202.00512;
w in [0, 4] and the two stages Meng et al.'s, 2210.03142. Neither says how long stage one
takes: 100,000 updates is our choice.
"""

import ml_collections

VARIANTS = ('', 'stochastic', 'single_w', 'naive', 'small', 'tiny')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  if variant not in VARIANTS:
    raise ValueError(f'{variant=} must be empty or one of {", ".join(VARIANTS[1:])}')

  def training(steps, lr, ema, weight, **more):
    return dict(
      steps=steps, batch_size=128, accumulation=1, lr=lr, anneal=False, warmup=0, ema=ema,
      beta1=0.9, beta2=0.999, adam_eps=1e-8, weight_decay=0.0, grad_clip=1.0, weight=weight, **more,
    )  # fmt: skip

  config = dict(
    seed=0,
    stages=('teacher', 'guidance', 'progressive'),
    initial='',  # the folder of a finished round, when stages does not begin with a teacher
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
    teacher=training(800_000, 2e-4, 0.9999, 'snr_trunc', p_uncond=0.1),
    guidance=training(
      100_000, 1e-3, 0.9999, 'snr',
      w_min=0.0, w_max=4.0, ws_per_pass=1, state='data', trajectory_steps=16, one_batch=True,
    ),
    progressive=training(
      50_000, 5e-5, 0.0, 'snr_trunc',
      start_steps=1024, end_steps=1, sampler='deterministic', state='data',
      last_steps=100_000, last_lr=5e-5,  # of the rounds for 2 and 1 steps
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
  config['teacher'].update(warmup=1000, weight_decay=0.001)
  config['progressive'].update(anneal=True)
  if variant == 'stochastic':
    config['progressive'].update(sampler='stochastic')
  if variant == 'single_w':
    config['guidance'].update(w_min=1.0, w_max=1.0)
    config['evaluation']['ws'] = (1.0,)
  if variant == 'naive':
    config['stages'] = ('teacher', 'progressive')
  if variant == 'small':
    # What a small budget bends: larger rates, annealed in every stage, with a faster second moment;
    # no dropout, more dropped labels; shorter means, in the rounds too; one loss weight in all
    # stages; rounds from 32 steps; and the two settings that docs/digits.md explains.
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
    config['model'].update(
      channels=8, num_blocks=1, attention_resolutions=(8,), emb_channels=16, w_features=8, groups=4,
      dtype='float32',
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
