"""Functions that the configs share: the check of a variant's name, and the common variants.

This file is not a config. A config imports this file with `from configs import common`, where
`configs` stands for the folder of that config: to copy a config elsewhere, copy common.py too.
"""

from collections.abc import Sequence


def check(variant: str, variants: Sequence[str]) -> None:
  """Raises ValueError unless `variants` has `variant`; the first of `variants` is ''."""
  if variant not in variants:
    raise ValueError(f'{variant=} must be empty or one of {", ".join(variants[1:])}')


def method(config: dict, variant: str) -> None:
  """Applies a variant of the method to `config`: `stochastic`, `single_w`, `naive` or `v`.

  Any other variant leaves `config` as it is.
  """
  if variant == 'stochastic':
    config['progressive'].update(sampler='stochastic')
  if variant == 'single_w':
    config['guidance'].update(w_min=1.0, w_max=1.0)
    config['evaluation'].update(ws=(1.0,))
  if variant == 'naive':
    config.update(stages=('teacher', 'progressive'))
  if variant == 'v':
    config.update(stages=('teacher', 'guidance', 'progressive'))
    config['model'].update(predict='v')


def tiny(config: dict, **model) -> None:
  """Applies the variant `tiny`: shrinks `config` until every stage takes seconds, for tests.

  `model` holds further sizes of the network. Sizes change, never the method.
  """
  config['model'].update(
    num_blocks=1, emb_channels=16, w_features=8, groups=4, dtype='float32', **model
  )
  for stage, steps in (('teacher', 6), ('guidance', 4), ('progressive', 4)):
    config[stage].update(steps=steps, batch_size=8, warmup=0)
  config['progressive'].update(last_steps=4, start_steps=4)
  config['train'].update(substeps=1, checkpoint_every=2, log_every=2)
  config['evaluation'].update(
    ws=(0.0, 2.0), num_steps=(1, 2), batch_size=20, real_images=200,
    quick_images=20, quick_reference_steps=4, full_images=40, full_reference_steps=8,
  )  # fmt: skip
