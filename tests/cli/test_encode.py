"""Tests of `gdistill encode`, and of plans of runs whose inputs do not exist yet."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import labelled
import latent_runs
import pytest

from gdistill.cli import command
from gdistill.cli import train

ROOT = pathlib.Path(__file__).parent.parent.parent
PHOTOS, TEXT, IMAGENET, SD = latent_runs.KINDS


@pytest.fixture(scope='module')
def given(tmp_path_factory):
  return latent_runs.inputs(tmp_path_factory.mktemp('given'))


def flags(folder, config, *more):
  file = folder / 'config.json'
  file.write_text(json.dumps(config))
  return ['encode', f'--config={file}', *more]


def program(*argv):
  code = 'from gdistill.cli import command; command.program()'
  return [sys.executable, '-c', code, *argv]


def test_it_prints_the_digest_and_pictures_a_second_and_then_has_nothing_to_do(
  given, tmp_path, capsys
):
  argv = flags(tmp_path, latent_runs.config(TEXT, given), f'--out={tmp_path}/cache')
  assert command.main(argv) == 0
  said = capsys.readouterr()
  index = json.loads((tmp_path / 'cache' / 'index.json').read_text())
  assert said.out == f'{tmp_path}/cache: 12 pictures, digest {index["digest"]}\n'
  assert re.search(
    r'^12 pictures encoded in both flips in [\d.]+ s, [\d.]+ pictures per second$', said.err, re.M
  )
  assert command.main(argv) == 0
  again = capsys.readouterr()
  assert again.out == said.out and 'nothing to do: every shard is complete' in again.err
  assert not (tmp_path / 'cache' / 'lock.json').exists()


@pytest.mark.full
def test_killed_and_repeated_it_ends_with_the_same_digest(given, tmp_path):
  config = latent_runs.config(PHOTOS, given, latents=dict(shard_size=2, batch_size=2))
  # The script waits for the signal when three shards and a part of the fourth are written.
  script = (
    'import sys, time\n'
    'from gdistill.cli import command\n'
    'from gdistill.data import records\n'
    'sealed, count = records.sealed, iter(range(100))\n'
    'def slow(*given):\n'
    '  if next(count) == 7:\n'
    "    print('three shards', flush=True); time.sleep(3600)\n"
    '  return sealed(*given)\n'
    'records.sealed = slow\n'
    'sys.exit(command.main(sys.argv[1:]))\n'
  )
  argv = flags(tmp_path, config)
  out = tmp_path / 'killed'
  child = subprocess.Popen(
    [sys.executable, '-c', script, *argv, f'--out={out}'], cwd=ROOT, text=True,
    stdout=subprocess.PIPE,
  )  # fmt: skip
  assert child.stdout.readline().strip() == 'three shards'
  child.send_signal(signal.SIGKILL)
  child.wait()
  shards = sorted(out.glob('*.array_record'))
  assert len(shards) == 3 and list(out.glob('.tmp-prepare-*')) and (out / 'lock.json').exists()
  before = {f: f.stat().st_mtime_ns for f in shards}
  again = subprocess.run(
    program(*argv, f'--out={out}'), cwd=ROOT, capture_output=True, text=True, check=True
  )
  assert command.main([*argv, f'--out={tmp_path}/whole']) == 0
  indices = (p / 'index.json' for p in (out, tmp_path / 'whole'))
  digests = [json.loads(index.read_text())['digest'] for index in indices]
  assert digests[0] == digests[1] and digests[0] in again.stdout
  assert '6 pictures encoded in both flips' in again.stderr  # the other six were kept
  assert {f: f.stat().st_mtime_ns for f in shards} == before
  assert sorted(os.listdir(out)) == sorted(os.listdir(tmp_path / 'whole'))


@pytest.mark.full
def test_sigterm_leaves_with_42_and_whole_shards(given, tmp_path):
  config = latent_runs.config(PHOTOS, given, latents=dict(shard_size=2, batch_size=2))
  script = (
    'import os, signal, sys\n'
    'from gdistill.cli import command\n'
    'from gdistill.data import records\n'
    'sealed, count = records.sealed, iter(range(100))\n'
    'def told(*given):\n'
    '  if next(count) == 3:\n'
    '    os.kill(os.getpid(), signal.SIGTERM)\n'
    '  return sealed(*given)\n'
    'records.sealed = told\n'
    'sys.exit(command.main(sys.argv[1:]))\n'
  )
  argv = flags(tmp_path, config, f'--out={tmp_path}/out')
  done = subprocess.run(
    [sys.executable, '-c', script, *argv], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 42, done.stderr
  assert 'repeat the command' in done.stderr.splitlines()[-1]
  names = sorted(os.listdir(tmp_path / 'out'))
  assert names == sorted(f'latents-0000{k}.{e}' for k in (0, 1) for e in ('array_record', 'json'))


@pytest.mark.full
def test_two_processes_share_the_work(given, tmp_path):
  import socket

  config = latent_runs.config(SD, given)
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  argv = flags(tmp_path, config)
  join = [f'--coordinator=127.0.0.1:{port}', '--num_processes=2']
  children = [
    subprocess.Popen(
      program(*argv, f'--out={tmp_path}/two', *join, f'--process_id={i}'), cwd=ROOT, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) for i in range(2)
  ]  # fmt: skip
  said = [child.communicate(timeout=600) for child in children]
  assert [c.returncode for c in children] == [0, 0], said
  counts = [int(re.search(r'(\d+) pictures encoded', err)[1]) for _, err in said]
  assert sum(counts) == 36 and min(counts) >= 12  # 36: 40 pictures, a tenth held out
  assert command.main([*argv, f'--out={tmp_path}/one']) == 0
  one, two = (json.loads((tmp_path / n / 'index.json').read_text()) for n in ('one', 'two'))
  assert one['digest'] == two['digest'] and two['digest'] in said[0][0]
  assert 'digest' not in said[1][0]  # only process 0 prints the digest


def damaged(given, tmp_path):
  shutil.copytree(given / 'tiny', tmp_path / 'damaged')
  weights = tmp_path / 'damaged' / 'diffusion_pytorch_model.safetensors'
  weights.write_bytes(weights.read_bytes()[:-9])
  return f'latents.autoencoder={tmp_path}/damaged'


def wrong_size(given, tmp_path):
  labelled.prepared(given / 'pictures', tmp_path / 'records', size=32)
  return f'data.path={tmp_path}/records', 'data.name=records'


def of_something_else(given, tmp_path):
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'thesis.tex').write_text('')
  return ()


def of_another(given, tmp_path):
  config = latent_runs.config(PHOTOS, given)
  assert command.main(flags(tmp_path, config, f'--out={tmp_path}/out')) == 0
  latent_runs.autoencoders.write(tmp_path / 'b', latent_runs.autoencoder('tiny', seed=1))
  return f'latents.autoencoder={tmp_path}/b'


WRONG = {
  'no autoencoder': (PHOTOS, lambda *_: 'latents.autoencoder=', 2, 'latents.autoencoder is empty'),
  'autoencoder missing': (
    PHOTOS, lambda *_: 'latents.autoencoder=nowhere', 3, 'nowhere holds no autoencoder; give',
  ),
  'autoencoder damaged': (PHOTOS, damaged, 3, 'safetensors holds no readable weights'),
  'text missing': (TEXT, lambda *_: 'latents.text=nowhere', 3, 'nowhere holds no text encoder'),
  'text not named': (TEXT, lambda *_: 'latents.text=', 2, 'latents.text=\'\' must name the folder'),
  'pictures missing': (PHOTOS, lambda *_: 'data.path=nowhere', 3, 'nowhere'),
  'cache of something else': (
    PHOTOS, of_something_else, 3, 'holds thesis.tex, which does not belong to a cache of latents',
  ),
  'cache of another': (PHOTOS, of_another, 3, 'holds latents of another autoencoder (tiny-'),
  'size': (IMAGENET, wrong_size, 3, 'model.image_size=8: {0}/records holds pictures of'),
  'channels': (IMAGENET, lambda *_: 'model.image_channels=4', 2, 'set model.image_channels=3'),
  'digits': (PHOTOS, lambda *_: ('data.name=digits', 'data.held_out=0.5'), 2, 'grey pictures'),
  'bucket': (PHOTOS, lambda *_: 'latents.cache=gs://b/c', 2, 'latents.cache='),
}  # fmt: skip


@pytest.mark.parametrize('case', WRONG)
def test_what_is_wrong_is_said_in_one_line(given, tmp_path, capsys, case):
  name, change, code, words = WRONG[case]
  changes = change(given, tmp_path)
  changes = (changes,) if isinstance(changes, str) else changes
  argv = flags(tmp_path, latent_runs.config(name, given), f'--out={tmp_path}/out')
  before = sorted((tmp_path / 'out').rglob('*'))
  capsys.readouterr()
  assert command.main([*argv, *(f'--config.{c}' for c in changes)]) == code
  said = capsys.readouterr().err
  assert said.count('\n') == 1 and words.format(tmp_path) in said, said
  if case == 'size':
    assert said.endswith('set model.image_size=16\n')
  assert sorted((tmp_path / 'out').rglob('*')) == before


def test_a_folder_must_be_named_and_local(given, tmp_path, capsys):
  config = latent_runs.config(PHOTOS, given)
  assert command.main(flags(tmp_path, config)) == 2
  assert '--out is missing, and latents.cache is empty' in capsys.readouterr().err
  assert command.main(flags(tmp_path, config, '--out=gs://b/c')) == 2
  assert '--out=gs://b/c must be a local folder' in capsys.readouterr().err


@pytest.mark.full
def test_a_plan_needs_neither_data_nor_networks_and_says_what_is_missing(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  config = f'--config={ROOT}/configs/stable_diffusion.py'
  assert train.main([config, '--plan', '--devices=8']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert any(line.startswith('mesh: ') and line.endswith('= 8 devices') for line in lines)
  assert re.match('initial: .*data/sd is not a finished round yet; import or train it', lines[-2])
  assert lines[-1].startswith('data: data/sd/autoencoder holds no autoencoder; give a folder')
  assert not list(tmp_path.iterdir())
