"""Tests of wrong input to every command: the exit code, one line, within seconds, no change."""

import hashlib
import json
import os
import pathlib
import shutil
import time

import disturbed
import micro
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from gdistill.cli import command
from gdistill.cli import train

ROOT = disturbed.ROOT
SECONDS = 5.0

# (exit code, words of the error line, one or more --config.<...> of an otherwise valid run)
CONFIG = [
  (2, 'teacher.lr=-1.0 must be above 0', 'teacher.lr=-1'),
  (2, 'teacher.lr=nan must be a finite number', 'teacher.lr=float("nan")', {'teacher.lr': np.nan}),
  (2, 'teacher.lr=inf must be a finite number', 'teacher.lr=1e400'),
  (2, "teacher.lr='abc' must be a finite number", 'teacher.lr=abc'),
  (2, 'guidance.lr=0.0 must be above 0', 'guidance.lr=0'),
  (2, 'teacher.batch_size=0 must be at least 1', 'teacher.batch_size=0'),
  (2, 'teacher.batch_size=-8 must be at least 1', 'teacher.batch_size=-8'),
  (2, 'teacher.batch_size=12.5 must be a whole number', 'teacher.batch_size=12.5'),
  (2, 'teacher.batch_size=True must be a whole number', 'teacher.batch_size=True'),
  (2, 'must be divisible by', 'teacher.accumulation=3'),
  (2, 'progressive.steps=0 must be at least 1', 'progressive.steps=0'),
  (2, 'teacher.warmup=1000000', 'teacher.warmup=1000000'),
  (2, 'teacher.ema=1.0 must be', 'teacher.ema=1.0'),
  (2, 'teacher.ema=-0.1 must be at least 0', 'teacher.ema=-0.1'),
  (2, 'teacher.beta2=1.0 must be', 'teacher.beta2=1.0'),
  (2, 'teacher.grad_clip=0.0 must be above 0', 'teacher.grad_clip=0'),
  (2, 'teacher.weight_decay=-1.0 must be at least 0', 'teacher.weight_decay=-1'),
  (2, 'seed=-1 must be', 'seed=-1'),
  (2, f'seed={2**64} must be', f'seed={2**64}'),
  (2, 'train.substeps=7 must be at least 1 and divide', 'train.substeps=7'),
  (2, 'train.checkpoint_every=0 must be at least 1', 'train.checkpoint_every=0'),
  (2, 'train.max_to_keep=0 must be at least 1', 'train.max_to_keep=0'),
  (2, 'train.stall_seconds=-1.0 must be at least 1, or 0', 'train.stall_seconds=-1'),
  (2, "model.dtype='fp17' must be one of float32, bfloat16", 'model.dtype=fp17'),
  (2, 'did you mean teacher.batch_size', 'teacher.batch_sise=1'),
  (2, 'did you mean guidance.w_max', 'train.w_max=1'),
  (2, 'unknown key', 'nowhere.lr=1'),
  # distillation
  (2, 'power of two', 'progressive.start_steps=100', 'progressive.end_steps=3'),
  (2, 'progressive.end_steps=8', 'progressive.end_steps=8'),
  (2, 'must not be above guidance.w_max', 'guidance.w_min=9.0'),
  (2, 'guidance.w_min=-1.0 must be at least 0', 'guidance.w_min=-1.0'),
  (2, 'teacher.p_uncond=0.0', 'teacher.p_uncond=0.0'),
  (2, "model.predict='score' must be one of", 'model.predict=score'),
  (2, 'must be below noise.logsnr_max', 'noise.logsnr_min=20.0'),
  (2, "progressive.sampler='euler' must be one of", 'progressive.sampler=euler'),
  # model
  (2, 'model.groups=3 must divide', 'model.groups=3'),
  (2, 'model.heads=3 must divide', 'model.heads=3'),
  (2, 'model.multipliers=() must', 'model.multipliers=()'),
  (2, 'must be divisible by', 'model.multipliers=(1,1,1,1,1)'),
  (2, 'the network has the resolutions', 'model.attention_resolutions=(5,)'),
  (2, 'model.num_classes=7', 'model.num_classes=7'),
  (2, 'model.dropout=1.0 must be', 'model.dropout=1.0'),
  # mesh
  (2, 'must equal the number of devices', 'mesh.data=5'),
  (2, 'cannot both be -1', 'mesh.data=-1', 'mesh.fsdp=-1'),
  (2, 'mesh.slices=7 must divide', 'mesh.slices=7'),
  # data
  (2, "data.name='nothing' must be one of", 'data.name=nothing'),
  (3, 'is no folder or archive', 'data.name=folder', 'data.path=/nowhere'),
  (3, 'data.path', 'data.name=folder', 'data.path=EMPTY'),
  (3, 'a training batch needs 2000', 'teacher.batch_size=2000', 'model.image_size=8'),
  # checkpoints
  (4, 'does not exist', 'stages=("progressive",)', 'initial=/nowhere'),
  (2, 'is not a round folder', 'stages=("progressive",)', 'initial=EMPTY'),
  (2, 'is a .ckpt file, not a round folder', 'stages=("progressive",)', 'initial=EMPTY/a.ckpt'),
  (2, 'needs a teacher', 'stages=("guidance",)', 'initial=RUN/01_guidance'),
  (2, 'needs guidance for sampling', 'stages=("progressive",)', 'initial=RUN/00_teacher'),
  (2, 'set progressive.start_steps=2', 'stages=("progressive",)', 'initial=RUN/02_progressive_2'),
  (2, 'model.channels=8 differs', 'stages=("guidance",)', 'initial=RUN/00_teacher',
   'model.channels=8'),
]  # fmt: skip

FLAGS = [
  (2, '--config=nowhere.py does not exist', '--config=nowhere.py'),
  (2, 'line 1: ', '--config=EMPTY/syntax.py'),
  (2, 'is not readable JSON', '--config=EMPTY/latin.json'),
  (2, 'unknown argument --config.', '--config.'),
  (2, 'unrecognized arguments: --bogus', '--bogus'),
  (2, 'needs --num_processes and --process_id', '--coordinator=localhost:1'),
  (
    2,
    'must be at least 0 and below',
    '--coordinator=localhost:1',
    '--num_processes=2',
    '--process_id=2',
  ),
  (2, 'not a valid path: a name in it is longer than 255 bytes', '--workdir=' + 'a' * 300),
  (2, 'is not a folder', '--workdir=EMPTY/a.ckpt/run'),
  (2, '--devices=3 is only for --plan', '--devices=3'),
]

EDIT = 'edit --folder=STUDENT --out=OUT'
OTHERS = [
  # sample
  (4, 'does not exist', 'sample --folder=/nowhere --out=OUT'),
  (2, 'is not a round folder', 'sample --folder=EMPTY --out=OUT'),
  (4, 'without card.json', 'sample --folder=HALF --out=OUT'),
  (2, '--num_steps=3', 'sample --folder=STUDENT --num_steps=3 --out=OUT'),
  (2, '--w=-1', 'sample --folder=STUDENT --w=-1 --out=OUT'),
  (2, '--labels', 'sample --folder=STUDENT --labels=10 --out=OUT'),
  (2, '--sampler', 'sample --folder=STUDENT --sampler=euler --out=OUT'),
  (2, 'is not empty', 'sample --folder=STUDENT --out=EMPTY'),
  (2, '--prompt', 'sample --folder=STUDENT --prompt=a --out=OUT'),
  (2, '--seeds', 'sample --folder=STUDENT --seeds=b --out=OUT'),
  # edit, inpaint, transfer
  (2, '--strength=1.1', EDIT + ' --image=PNG --label=3 --strength=1.1'),
  (2, '--strength=0', EDIT + ' --image=PNG --label=3 --strength=0'),
  (2, '--label', EDIT + ' --image=PNG --label=eleven --strength=0.5'),
  (3, '/nowhere.png does not exist', EDIT + ' --image=/nowhere.png --label=3 --strength=0.5'),
  (3, 'EMPTY/broken.png', EDIT + ' --image=EMPTY/broken.png --label=3 --strength=0.5'),
  (3, 'mask', 'inpaint --folder=STUDENT --image=PNG --mask=WIDE --label=3 --out=OUT'),
  (2, '--encoder', 'transfer --folder=STUDENT --image=PNG --source_label=3 --label=8 --out=OUT'),
  # evaluate, statistics, table
  (2, 'config.json', 'evaluate --workdir=EMPTY'),
  (2, '--workdir', 'evaluate'),
  (3, 'gdistill convert', 'evaluate --images=PICTURES --reference=PNG --weights=/nowhere'),
  (3, 'is neither a folder', 'evaluate --images=/nowhere --reference=PICTURES'),
  (2, "--preset='cifar' must be one of", 'evaluate --preset=cifar'),
  (3, 'is not readable JSON', 'table EMPTY/latin.json'),
  (3, 'is neither a folder', 'statistics --source=/nowhere --size=8 --out=OUT.npz'),
  # import, export, convert, encode, prepare
  (3, '/nowhere', 'import --source=/nowhere --out=OUT'),
  (2, '.ckpt', 'import --source=EMPTY/a.ckpt --out=OUT'),
  (2, 'tells the kind of network', 'import --source=STRANGE --out=OUT'),
  (2, 'is not empty', 'export --folder=STUDENT --out=EMPTY'),
  (4, 'does not exist', 'export --folder=/nowhere --out=OUT'),
  (2, 'latents.autoencoder', 'encode --config=CONFIG --out=OUT'),
  (3, 'does not exist', 'prepare --source=/nowhere --out=OUT'),
  (2, '--size=0', 'prepare --source=PICTURES --out=OUT --size=0'),
]  # fmt: skip


@pytest.fixture(scope='module')
def places(undisturbed, tmp_path_factory):
  """Returns the paths for the words in capitals in the tables above."""
  base = tmp_path_factory.mktemp('wrong')
  empty, half, pictures = base / 'empty', base / 'half', base / 'pictures'
  for folder in (empty, half / 'steps' / '1', pictures):
    folder.mkdir(parents=True)
  (empty / 'a.ckpt').write_bytes(b'\x80\x02}q\x00.')
  (empty / 'syntax.py').write_text('def get_config(:\n')
  (empty / 'latin.json').write_bytes('{"a": "é"}'.encode('latin-1'))
  (empty / 'bad.npz').write_bytes(b'PK\x03\x04 and nothing more')
  (empty / 'broken.png').write_bytes(b'\x89PNG\r\n\x1a\n and nothing more')
  safetensors.numpy.save_file({'strange.weight': np.ones(3, np.float32)}, base / 'x.safetensors')
  for i in range(3):
    Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(pictures / f'{i}.png')
  Image.fromarray(np.full((8, 16), 255, np.uint8)).save(base / 'wide.png')
  config = base / 'config.json'
  config.write_text(json.dumps(micro.config()))
  return {
    'EMPTY': empty, 'HALF': half, 'PICTURES': pictures, 'PNG': pictures / '1.png',
    'WIDE': base / 'wide.png', 'STRANGE': base / 'x.safetensors', 'CONFIG': config,
    'RUN': undisturbed, 'STUDENT': undisturbed / '02_progressive_2', 'OUT': base / 'out',
    'base': base,
  }  # fmt: skip


def filled(word, places):
  for name in sorted(places, key=len, reverse=True):
    if name.isupper():
      word = word.replace(name, str(places[name]))
  return word


def contents(*folders):
  found = {}
  for folder in folders:
    for path in sorted(p for p in pathlib.Path(folder).rglob('*') if p.is_file()):
      found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
  return found


def refused(call, argv, code, words, places, capsys):
  """Checks exit code, the words of the single error line, the time, and that no file changed."""
  kept = places['base'], places['RUN']
  # The time of this process alone, because the machine may be busy with other work.
  before, began = contents(*kept), time.process_time()
  try:
    found = call(argv)
  except SystemExit as e:
    found = e.code
  seconds, said = time.process_time() - began, capsys.readouterr().err
  lines = [line for line in said.splitlines() if not line.startswith('WARNING')]
  assert found == code, (argv, found, said[-300:])
  assert len(lines) == 1 and lines[0].startswith('gdistill: '), (argv, said)
  assert filled(words, places) in lines[0], (argv, lines[0])
  assert seconds < SECONDS, (argv, seconds)
  assert contents(*kept) == before, argv


def all_refused(cases, places, capsys):
  """Returns 'N of N', or fails with a line for every case that got another answer."""
  otherwise = []
  for call, argv, code, words in cases:
    try:
      refused(call, argv, code, words, places, capsys)
    except AssertionError as e:
      otherwise.append(str(e).splitlines()[0])
  assert not otherwise, '\n'.join(otherwise)
  return f'{len(cases)} of {len(cases)}'


def test_a_run_that_cannot_be_is_refused(places, capsys, record_property, tmp_path):
  cases = []
  for code, words, *changes in CONFIG:
    given = [f'--config.{filled(c, places)}' for c in changes if isinstance(c, str)]
    config = places['CONFIG']
    for change in changes:
      if isinstance(change, dict):  # a value that no literal can express, such as nan
        given, plain = [], micro.config()
        for key, value in change.items():
          section, name = key.split('.')
          plain[section][name] = value
        config = tmp_path / 'config.json'
        config.write_text(json.dumps(plain))
    argv = [f'--config={config}', f'--workdir={places["base"]}/run', *given]
    cases.append((train.main, argv, code, words))
  for code, words, *flags in FLAGS:
    given = [filled(f, places) for f in flags]
    defaults = [f'--config={places["CONFIG"]}', f'--workdir={places["base"]}/run']
    names = {f.split('=')[0] for f in given}
    argv = [*(d for d in defaults if d.split('=')[0] not in names), *given]
    cases.append((train.main, argv, code, words))
  record_property('wrong runs that got the promised answer', all_refused(cases, places, capsys))


def test_every_other_command_refuses_what_is_wrong(places, capsys, record_property, monkeypatch):
  monkeypatch.chdir(places['base'])
  cases = [
    (command.main, [filled(word, places) for word in line.split()], code, words)
    for code, words, line in OTHERS
  ]
  record_property('wrong commands that got the promised answer', all_refused(cases, places, capsys))


def test_a_damaged_round_ends_with_4_and_names_its_file(places, tmp_path, capsys):
  run = shutil.copytree(places['RUN'], tmp_path / 'run')
  for name, words in (
    ('card.json', 'card.json cannot be trusted'),
    ('params/manifest.json', 'manifest.json cannot be trusted'),
  ):
    file = run / '02_progressive_2' / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    good = file.read_bytes()
    file.write_bytes(bytes(data))
    argv = ['sample', f'--folder={file.parents[name.count("/")]}', f'--out={tmp_path}/out']
    refused(command.main, argv, 4, words, places, capsys)
    file.write_bytes(good)
    assert not (tmp_path / 'out').exists()
  arrays = max((run / '02_progressive_2' / 'params').rglob('*'), key=lambda p: p.stat().st_size)
  arrays.write_bytes(arrays.read_bytes()[:-1])
  argv = ['sample', f'--folder={run}/02_progressive_2', f'--out={tmp_path}/out']
  refused(command.main, argv, 4, os.fspath(arrays.relative_to(run / '02_progressive_2' / 'params')),
          places, capsys)  # fmt: skip
