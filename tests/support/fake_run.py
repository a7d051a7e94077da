"""A made-up run: rows whose FD is a function of their place, and the workdir of such a run."""

import html
import io
import json
import re

import numpy as np
from sklearn import datasets

from gdistill.workdir import storage

WS, STEPS = (0.0, 0.3, 1.0, 2.0, 4.0), (1, 2, 4, 8, 16)


def rows(ws=WS, steps=STEPS):
  """Returns rows with made-up numbers; `fd` gives the FD of each place, so tests can find a row."""
  rounds = {n: f'{i + 2:02d}_progressive_{n}' for i, n in enumerate(sorted(steps, reverse=True))}
  rows = []
  for w in ws:
    places = [('teacher', 'teacher', 'ddim', 256, '00_teacher')]
    places += [('student', 'guidance', 'ddim', 256, '01_guidance')]
    for n in steps:
      places += [('student', 'progressive', 'ddim', n, rounds[n])]
      places += [('teacher', 'teacher', s, n, '00_teacher') for s in ('ddim', 'dpm_solver')]
    for model, stage, sampler, n, folder in places:
      distance = fd(model, sampler, n, w)
      rows.append({
        'model': model, 'stage': stage, 'sampler': sampler, 'num_steps': n, 'w': w,
        'network_calls': n * (2 if model == 'teacher' and w else 1), 'fd': distance,
        'fd_held_out': distance + 1, 'fd_teacher': distance / 3, 'rms_teacher': 0.4 / n,
        'inception_score': 9.2 - distance / 40, 'accuracy': 0.97, 'precision': 0.9,
        'recall': 0.8 - w / 10, 'nearest_training': 5.5, 'nearest_held_out': 6.5, 'images': 2000,
        'seconds_per_image': 0.001 * n, 'grid': 'full', 'guided': model == 'teacher',
        'cell': f'{model}-{stage}-{sampler}-{n}-w{w}', 'round': folder,
      })  # fmt: skip
  data = {'model': 'data', 'sampler': None, 'num_steps': 0, 'w': None, 'fd': 2.25, 'images': 360}
  return [*rows, data]


def fd(model, sampler, n, w):
  hardness = {('student', 'ddim'): 6.0, ('teacher', 'dpm_solver'): 60.0}.get(
    (model, sampler), 100.0
  )
  return 3 + w * w / 2 + hardness / n**1.2


def workdir(folder, rows, pictures=True, rounds=True):
  """Writes the workdir of a finished run whose samples are noisy digits; returns the folder."""
  digits = np.round(datasets.load_digits().images * 255 / 16).astype(np.uint8)[..., None]
  labels = datasets.load_digits().target
  rng = np.random.default_rng(0)
  storage.write_json(folder / 'report' / 'metrics.json', rows)
  for row in rows if pictures else ():
    if 'cell' in row:
      index = [np.flatnonzero(labels == i % 10)[i] for i in range(40)]
      noise = rng.normal(0, 60 / row['num_steps'], (40, 8, 8, 1))
      pixels = np.clip(digits[index] + noise, 0, 255).astype(np.uint8)
      file = io.BytesIO()
      np.savez_compressed(file, pixels=pixels)
      storage.write_bytes(folder / 'evaluation' / 'cells' / f'{row["cell"]}.npz', file.getvalue())
  for name in sorted({r['round'] for r in rows if r.get('round')}) if rounds else ():
    num_steps = int(name.split('_')[-1]) if name[-1].isdigit() else 256
    card = {'stage': name.split('_')[1], 'num_steps': num_steps, 'takes_w': name != '00_teacher',
            'w_min': 0.0, 'w_max': 4.0, 'parameters': 612345, 'seconds': 45.5,
            'versions': {'jax': '0.10.2'}, 'something_new': [1, 2]}  # fmt: skip
    storage.write_json(folder / name / 'card.json', card)
    lines = [
      json.dumps({'step': i, 'loss': np.exp(-i / 300) + 0.1 * rng.random(), 'grad_norm': 1.0,
                  'lr': 1e-3, 'updates_per_second': 11.0})
      for i in range(0, 1000, 4)
    ]  # fmt: skip
    storage.write_bytes(folder / name / 'metrics.jsonl', '\n'.join(lines).encode())
  storage.write_json(folder / 'config.json', {'seed': 0, 'data': {'name': 'digits'}})
  storage.write_json(
    folder / 'time.json', {'productive': 300.0, 'compile': 41.0, 'save': 3.5, 'evaluate': 77.0}
  )
  return folder


def embedded(page):
  return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1])


def text_of(page):
  """Returns the text that a reader sees without JavaScript."""
  page = re.sub(r'<(style|script|noscript)\b.*?</\1>', '', page, flags=re.DOTALL)
  return html.unescape(re.sub(r'\s+', ' ', re.sub(r'<[^>]*>', ' ', page)))
