"""Weights are found by every name that publishers give them, read whole, and never unpickled."""

import argparse
import json
import os
import pathlib
import pickle
import re
import shlex
import sys
import zipfile

import jax
import numpy as np
import published
import pytest
import safetensors.numpy
import texts
from jax import numpy as jnp

from gdistill import errors
from gdistill.cli import command
from gdistill.convert import autoencoder
from gdistill.convert import files
from gdistill.convert import text
from gdistill.models import efficientnet
from gdistill.models import inception
from gdistill.published import teachers

pytestmark = pytest.mark.full

RNG = np.random.default_rng(0)
USUAL = 'model.safetensors'
STATE = {'a.weight': np.arange(6, dtype=np.float32).reshape(2, 3), 'b': np.ones(2, np.float16)}


def same(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def split(file, variant='', shards=0, state=None):
  """Replaces one file by a variant, or by shards and their index, named as in diffusers."""
  state = safetensors.numpy.load_file(file) if state is None else state
  file.unlink(missing_ok=True)
  if not shards:
    safetensors.numpy.save_file(state, file.with_name(f'{file.stem}{variant}.safetensors'))
    return
  names = [f'{file.stem}{variant}-{i:05}-of-{shards:05}.safetensors' for i in range(1, shards + 1)]
  where = {name: names[i % shards] for i, name in enumerate(state)}
  for shard in names:
    held = {name: value for name, value in state.items() if where[name] == shard}
    safetensors.numpy.save_file(held, file.with_name(shard))
  index = file.with_name(f'{file.name}.index{variant}.json')
  index.write_text(json.dumps({'metadata': {'total_size': 1}, 'weight_map': where}))


@pytest.mark.parametrize(
  ('there', 'expected'),
  [
    ((USUAL, 'model.fp16.safetensors', 'model.bin'), USUAL),
    ((f'{USUAL}.index.json', 'model-00001-of-00002.safetensors', 'pytorch_model.bin'),
     f'{USUAL}.index.json'),
    ((f'{USUAL}.index.fp16.json', 'model-00001-of-00002.fp16.safetensors'),
     f'{USUAL}.index.fp16.json'),
    ((f'{USUAL}.index.fp16.json', 'model.fp16-00001-of-00001.safetensors'),
     f'{USUAL}.index.fp16.json'),
    (('model.fp16.safetensors', 'other.safetensors', 'config.json'), 'model.fp16.safetensors'),
    (('DiT-XL-2.safetensors', 'DiT-XL-2.pt'), 'DiT-XL-2.safetensors'),
  ],
)  # fmt: skip
def test_weights_are_found_under_their_usual_name_in_shards_or_as_the_one_variant(
  tmp_path, there, expected
):
  for name in there:
    (tmp_path / name).touch()
  assert files.find(tmp_path, USUAL) == tmp_path / expected
  assert files.find(tmp_path / expected, USUAL) == tmp_path / expected


@pytest.mark.parametrize(
  ('there', 'error', 'words'),
  [
    ((), errors.DataError, rf'holds no \.safetensors file; put {USUAL} there, or give'),
    (('model.fp16.safetensors', 'model.ema.safetensors'), errors.DataError,
     rf'2 \.safetensors files \(model\.ema\.safetensors, model\.fp16\.safetensors\) and none is '
     rf'called {USUAL}; rename the file to be used to {USUAL}, or give the path of that file'),
    ((f'{USUAL}.index.fp16.json', f'{USUAL}.index.bf16.json'), errors.DataError,
     rf'rename the file to be used to {USUAL}\.index\.json,'),
    (('model-00002-of-00002.safetensors',), errors.DataError,
     rf'holds shards but not their index {USUAL}\.index\.json; download {USUAL}'),
    (('a.pt', 'pytorch_model.fp16.bin', 'pytorch_model.bin', 'training_args.bin'),
     errors.ConfigError, rf"/pytorch_model\.bin is one of torch's .*--out=\S+/{USUAL}$"),
    (('optimizer.pt', 'pytorch_model-00001-of-00002.bin', 'pytorch_model.bin.index.json'),
     errors.ConfigError, rf"/pytorch_model\.bin\.index\.json is one of torch's .*/{USUAL}$"),
  ],
)  # fmt: skip
def test_a_folder_without_weights_that_can_be_read_says_what_to_do(tmp_path, there, error, words):
  for name in there:
    (tmp_path / name).touch()
  with pytest.raises(error, match=words):
    files.find(tmp_path, USUAL)
  with pytest.raises(errors.DataError, match='nowhere does not exist; give the path of a file'):
    files.find(tmp_path / 'nowhere', USUAL)


@pytest.mark.parametrize('variant', ['', '.fp16'])
def test_shards_together_are_the_whole(tmp_path, variant):
  split(tmp_path / USUAL, variant, 2, STATE)
  found = files.find(tmp_path, USUAL)
  same(files.weights(found), STATE)
  assert sorted(files.names(found)) == sorted(STATE)
  assert {p.name for p in files.parts(found)} == {p.name for p in tmp_path.iterdir()}
  split(tmp_path / 'whole.safetensors', state=STATE)
  same(files.weights(tmp_path / 'whole.safetensors'), STATE)
  assert files.parts(tmp_path / 'whole.safetensors') == [tmp_path / 'whole.safetensors']


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    ('{', 'index.json is damaged: Expecting'),
    ('[]', 'index.json is damaged: list indices'),
    ('{}', "index.json is damaged: it has no 'weight_map'; download the file again"),
    ('{"weight_map": []}', 'index.json is damaged'),
    ('{"weight_map": {}}', 'index.json is damaged: its weight_map is empty'),
    ('{"weight_map": {"b": 3}}', 'index.json is damaged'),
    ('{"weight_map": {"b": "../x.safetensors"}}', "'../x.safetensors' is not the name of a .safet"),
    ('{"weight_map": {"b": "x.bin"}}', "'x.bin' is not the name of a .safetensors file beside"),
    ('{"weight_map": {"b": "lost.safetensors"}}',
     r'lost\.safetensors is missing, and model\.safetensors\.index\.json lists it; '
     r'download the shard'),
    ('{"weight_map": {"c": "x.safetensors"}}', r'x\.safetensors has no array c, which model\.'),
  ],
)  # fmt: skip
def test_a_damaged_index_or_a_missing_shard_is_named(tmp_path, content, words):
  index = tmp_path / f'{USUAL}.index.json'
  index.write_text(content)
  for folder in (tmp_path, tmp_path.parent):
    safetensors.numpy.save_file(STATE, folder / 'x.safetensors')
  with pytest.raises(errors.DataError, match=words):
    files.weights(files.find(index, USUAL))


@pytest.mark.parametrize(('variant', 'shards'), [('.fp16', 0), ('', 3), ('.fp16', 3)])
def test_a_teacher_in_shards_or_a_variant_is_the_same_and_so_is_its_copy(tmp_path, variant, shards):
  source = published.stable_diffusion(tmp_path / 'sd')
  before = teachers.read(str(source))
  for part, usual in (
    ('unet', published.WEIGHTS),
    ('vae', published.WEIGHTS),
    ('text_encoder', USUAL),
  ):
    split(source / part / usual, variant, shards)
    assert not (source / part / usual).exists()
  found = teachers.read(str(source))
  same(found.params, before.params)
  assert found.about == before.about and found.autoencoder.digest == before.autoencoder.digest
  assert found.text.digest == before.text.digest
  text.write(str(tmp_path / 'out'), found.text)
  # Writing an encoder into its own folder must not empty the files.
  text.write(str(tmp_path / 'out'), text.read(str(tmp_path / 'out')))
  again = text.read(str(tmp_path / 'out'))
  assert again.digest == before.text.digest
  same(again.params, before.text.params)
  # The copy is bit for bit, under the usual name, which other libraries look for.
  one, two = (list((p / 'text_encoder').iterdir()) for p in (source, tmp_path / 'out'))
  assert sorted(p.read_bytes() for p in one) == sorted(p.read_bytes() for p in two)
  assert (
    tmp_path / 'out' / 'text_encoder' / (f'{USUAL}.index.json' if shards else USUAL)
  ).is_file()


def test_half_precision_is_copied_in_half_precision(tmp_path):
  state = {n: v.astype(np.float16) for n, v in texts.clip_state().items()}
  folder = texts.clip_folder(tmp_path / 'half', state)
  split(folder / 'text_encoder' / USUAL, '.fp16')
  encoder = text.read(str(folder))
  single = {n: v.astype(np.float32) for n, v in state.items()}
  same(encoder.params, text.read(str(texts.clip_folder(tmp_path / 'single', single))).params)
  text.write(str(tmp_path / 'out'), encoder)
  same(safetensors.numpy.load_file(tmp_path / 'out' / 'text_encoder' / USUAL), state)
  assert text.read(str(tmp_path / 'out')).digest == encoder.digest


class Code:
  def __init__(self, trace):
    self.trace = trace

  def __reduce__(self):
    return os.mkdir, (self.trace,)


@pytest.mark.parametrize(
  'name', ['vae.pt', 'vae', 'vae.pkl', 'vae.bin', 'pytorch_model.bin.index.json']
)
def test_no_importer_opens_a_pickle(tmp_path, monkeypatch, name):
  monkeypatch.setitem(sys.modules, 'torch', None)  # makes `import torch` fail
  file, trace = tmp_path / name, tmp_path / 'trace'
  file.write_bytes(pickle.dumps({'a': Code(str(trace))}))
  words = re.escape(f'gdistill convert checkpoint --source={file} --out={tmp_path}/')
  for reader in (
    files.weights, autoencoder.read, lambda f: files.find(f, USUAL),
    lambda f: teachers.read(str(f), kind='dit'), lambda f: teachers.read(str(f), kind='adm64'),
  ):  # fmt: skip
    with pytest.raises(errors.ConfigError, match=words + r'\S+\.safetensors$'):
      reader(file)
  assert not trace.exists()


def test_a_command_with_a_space_in_a_path_can_be_pasted(tmp_path):
  file = tmp_path / 'my vae.pt'
  file.touch()
  with pytest.raises(errors.ConfigError) as e:
    files.weights(file)
  assert shlex.split(str(e.value).partition('first: ')[2])[3:] == [
    f'--source={file}', f'--out={tmp_path}/my vae.safetensors'
  ]  # fmt: skip


@pytest.fixture
def torch():
  return pytest.importorskip('torch', reason='bash launch/test.sh parity installs torch')


@pytest.mark.parity
@pytest.mark.parametrize('shards', [1, 2])
def test_the_commands_that_are_named_make_a_folder_that_is_read(tmp_path, torch, shards):
  source = published.stable_diffusion(tmp_path / 'sd')
  before = teachers.read(str(source))
  stems = {'unet': 'diffusion_pytorch_model', 'vae': 'diffusion_pytorch_model'}
  for part, stem in {**stems, 'text_encoder': 'pytorch_model'}.items():
    (file,) = (source / part).glob('*.safetensors')
    state = safetensors.numpy.load_file(file)
    file.unlink()
    bins = [f'{stem}.bin'] if shards == 1 else [f'{stem}-0000{i}-of-00002.bin' for i in (1, 2)]
    where = {name: bins[i % shards] for i, name in enumerate(state)}
    for shard in bins:
      held = {n: torch.from_numpy(state[n]) for n, at in where.items() if at == shard}
      torch.save(held, file.with_name(shard))
    if shards > 1:
      file.with_name(f'{stem}.bin.index.json').write_text(json.dumps({'weight_map': where}))
  for _ in range(3):
    with pytest.raises(errors.ConfigError) as e:
      teachers.read(str(source))
    assert command.main(shlex.split(str(e.value).partition('gdistill ')[2])) == 0
  found = teachers.read(str(source))
  same(found.params, before.params)
  assert found.autoencoder.digest == before.autoencoder.digest
  assert found.text.digest == before.text.digest


@pytest.mark.parity
def test_a_training_script_of_dits_is_read_with_its_arguments_and_numbers(tmp_path, torch):
  w = torch.arange(6.0).reshape(2, 3)
  arguments = argparse.Namespace(model='DiT-XL/2', lr=np.float64(1e-4), image_size=256)
  numbers = {
    'f64': np.float64(2.5), 'f32': np.float32(1), 'i64': np.int64(3), 'yes': np.bool_(True),
    'kind': np.dtype('float32'), 'class': np.float32, 'array': np.arange(3),
    'of': type(np.dtype('float64')), 'big': type(np.dtype('uint8')),
  }  # fmt: skip
  adam = {'state': {0: {'step': torch.tensor(1.0), 'exp_avg': w}}, 'param_groups': [{'lr': 1e-4}]}
  saved = {'model': {'w': 0 * w}, 'ema': {'w': w}, 'opt': adam, 'args': arguments, **numbers}
  torch.save(saved, tmp_path / 'dit.pt')
  same(files.checkpoint(tmp_path / 'dit.pt'), {'w': w.numpy()})
  torch.save({'state_dict': {'w': w, 'best': np.float64(0.5)}}, tmp_path / 'best.ckpt')
  same(files.checkpoint(tmp_path / 'best.ckpt'), {'w': w.numpy()})


@pytest.mark.parity
def test_numbers_by_the_names_of_the_older_numpy_are_set_aside(tmp_path, torch):
  torch.save({'w': torch.ones(2), 'best': np.float64(0.5)}, tmp_path / 'new.pt')
  assert b'numpy._core.multiarray' in (tmp_path / 'new.pt').read_bytes()
  with (
    zipfile.ZipFile(tmp_path / 'new.pt') as new,
    zipfile.ZipFile(tmp_path / 'old.pt', 'w') as old,
  ):
    for name in new.namelist():
      old.writestr(name, new.read(name).replace(b'numpy._core.', b'numpy.core.'))
  same(files.checkpoint(tmp_path / 'old.pt'), {'w': np.ones(2, np.float32)})


@pytest.mark.parity
def test_what_may_run_code_is_named_and_not_run(tmp_path, torch):
  trace = tmp_path / 'trace'
  for value, name in (
    (Code(str(trace)), 'posix.mkdir'),
    (pathlib.PurePosixPath('a'), r'pathlib\S*PurePosixPath'),
  ):
    torch.save({'w': torch.ones(1), 'x': value}, tmp_path / 'code.pt')
    for reader in (files.checkpoint, files.read):
      with pytest.raises(
        errors.DataError, match=rf'code\.pt holds .* contains {name}, which is not a te'
      ) as e:
        reader(tmp_path / 'code.pt')
      assert 'download' not in str(e.value) and '\x1b' not in str(e.value)
  assert not trace.exists()


@pytest.mark.parity
@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
def test_of_what_torch_says_of_a_file_the_cause_is_passed_on(tmp_path, torch):
  # torch's safe loader reads pickles of protocol 2 only.
  torch.save({'w': torch.ones(1)}, tmp_path / 'a.pt', pickle_protocol=4)
  with pytest.raises(errors.DataError) as e:
    files.checkpoint(tmp_path / 'a.pt')
  words = 'holds no readable weights: Unsupported operand 149; download the file again'
  assert str(e.value) == f'{tmp_path}/a.pt {words}'
  (tmp_path / 'cut.pt').write_bytes((tmp_path / 'a.pt').read_bytes()[:-40])
  with pytest.raises(errors.DataError, match=r'no readable weights: .*; download the file again$'):
    files.checkpoint(tmp_path / 'cut.pt')


def norm(name, channels):
  return {
    f'{name}.weight': RNG.uniform(0.5, 2, channels), f'{name}.bias': RNG.normal(size=channels),
    f'{name}.running_mean': RNG.normal(size=channels),
    f'{name}.running_var': RNG.uniform(0.5, 2, channels),
    f'{name}.num_batches_tracked': np.array(3),
  }  # fmt: skip


def arrays_of(net, shape, names):
  """Returns {torch name: array} for every parameter of `net`; `names` maps our layers to theirs."""
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape))['params']
  state = {}
  for layer, leaf in shapes.items():
    if layer not in ('fc_kernel', 'fc_bias', 'logits'):
      conv, after = names(layer)
      height, width, inside, outside = leaf['kernel'].shape
      state[f'{conv}.weight'] = RNG.normal(size=(outside, inside, height, width)).astype(np.float32)
      state |= norm(after, outside)
  return state, shapes


def of_inception(layer):
  for block in ('Mixed_5b', 'Mixed_5c', 'Mixed_5d', 'Mixed_6a', 'Mixed_6b', 'Mixed_6c', 'Mixed_6d',
                'Mixed_6e', 'Mixed_7a', 'Mixed_7b', 'Mixed_7c'):  # fmt: skip
    if layer.startswith(f'{block}_'):
      layer = f'{block}.{layer.removeprefix(f"{block}_")}'
  return f'{layer}.conv', f'{layer}.bn'


def of_efficientnet(layer):
  if layer in ('stem', 'head'):
    return f'_conv_{layer}', {'stem': '_bn0', 'head': '_bn1'}[layer]
  _, block, part = layer.split('_')
  number = {'expand': 0, 'depthwise': 1, 'project': 2}[part]
  return f'_blocks.{block}._{part}_conv', f'_blocks.{block}._bn{number}'


@pytest.mark.parametrize(
  ('network', 'net', 'shape', 'names', 'last', 'layer'),
  [
    ('inception', inception.Inception(), (1, 299, 299, 3), of_inception,
     {'fc.weight': (1008, 2048), 'fc.bias': (1008,)}, 'Mixed_6c.branch_pool'),
    ('lite0', efficientnet.EfficientNetLite0(), (1, 64, 64, 3), of_efficientnet,
     {'_fc.weight': (1000, 1280), '_fc.bias': (1000,)}, '_blocks.15.'),
  ],
  ids=['inception', 'efficientnet'],
)  # fmt: skip
def test_every_published_array_finds_its_place(network, net, shape, names, last, layer):
  state, shapes = arrays_of(net, shape, names)
  state |= {name: np.zeros(size, np.float32) for name, size in last.items()}
  params = files.params_from(network, state)
  expected = jax.tree.map(lambda leaf: leaf.shape, shapes)
  assert jax.tree.map(lambda leaf: leaf.shape, params) == expected
  missing = dict(state)
  needed = sorted(n for n in missing if 'num_batches_tracked' not in n)  # a counter of torch
  name = needed[len(needed) // 2]
  del missing[name]
  with pytest.raises(errors.ConfigError, match=r'is missing|is not an array of'):
    files.params_from(network, missing)
  with pytest.raises(errors.ConfigError, match="'surplus' is not an array of"):
    files.params_from(network, {**state, 'surplus': np.zeros(1)})
  short = {name: value for name, value in state.items() if not name.startswith(layer)}
  with pytest.raises(errors.ConfigError, match=r'is missing, and in .* another network'):
    files.params_from(network, short)
  name = next(n for n in last if 'weight' in n)
  other = {**state, name: state[name][:10], name.replace('weight', 'bias'): np.zeros(10)}
  with pytest.raises(errors.ConfigError, match=r'\(10,\), and in .* another network'):
    files.params_from(network, other)


def test_two_arrays_are_no_clip():
  state = {'text_model.final_layer_norm.weight': np.ones(512),
           'vision_model.post_layernorm.weight': np.ones(768)}  # fmt: skip
  with pytest.raises(errors.ConfigError, match='is missing, and in clip_b32 it is'):
    files.params_from('clip_b32', state)
