"""Folders of small text encoders with random weights, in the format of transformers."""

import json
import pathlib

import numpy as np
import safetensors.numpy

WIDTH, LAYERS, HEADS, MLP = 32, 2, 4, 48
MERGES = [('a', 't</w>'), ('c', 'at</w>'), ('t', 'h'), ('th', 'e</w>'), ('o', 'f</w>'), ('r', 'e')]
BERT_WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'a', 'cat', 'the', 'of', '##s', ',']
_CONFIG = dict(
  hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=MLP,
)  # fmt: skip


def alphabet():
  """Returns the 256 characters that stand for bytes in byte-level BPE; '!' comes first."""
  from tokenizers import pre_tokenizers

  return sorted(pre_tokenizers.ByteLevel.alphabet())


def clip_vocabulary():
  """Returns {token: id} in CLIP's order: bytes, bytes that end a word, merges, start, end."""
  letters = alphabet()
  tokens = [*letters, *(c + '</w>' for c in letters), *map(''.join, MERGES)]
  return {t: i for i, t in enumerate([*tokens, '<|startoftext|>', '<|endoftext|>'])}


def clip_tokenizer(folder, pad='<|endoftext|>', **settings):
  put(folder / 'vocab.json', json.dumps(clip_vocabulary()))
  put(folder / 'merges.txt', '\n'.join(['#version: 0.2', *map(' '.join, MERGES), '']))
  described = {
    f'{name}_token': dict(
      content=content, lstrip=False, normalized=True, rstrip=False, single_word=False
    )
    for name, content in (
      ('bos', '<|startoftext|>'), ('eos', '<|endoftext|>'), ('unk', '<|endoftext|>'),
    )
  }  # fmt: skip
  put(folder / 'special_tokens_map.json', json.dumps({**described, 'pad_token': pad}))
  described = {name: {'__type': 'AddedToken', **of} for name, of in described.items()}
  settings = {'pad_token': '<|endoftext|>', 'model_max_length': 77, **described, **settings}
  put(folder / 'tokenizer_config.json', json.dumps(settings))


def bert_tokenizer(folder):
  put(folder / 'vocab.txt', '\n'.join([*BERT_WORDS, '']))
  put(folder / 'tokenizer_config.json', json.dumps({'do_lower_case': True}))


def clip_state():
  """Returns {name in torch: random array} of CLIP's text tower."""
  shapes = {
    'embeddings.token_embedding.weight': (len(clip_vocabulary()), WIDTH),
    'embeddings.position_embedding.weight': (77, WIDTH),
    'final_layer_norm': (WIDTH,),
  }
  for i in range(LAYERS):
    at = f'encoder.layers.{i}'
    shapes |= {f'{at}.self_attn.{n}_proj': (WIDTH, WIDTH) for n in ('q', 'k', 'v', 'out')}
    shapes |= {f'{at}.mlp.fc1': (MLP, WIDTH), f'{at}.mlp.fc2': (WIDTH, MLP)}
    shapes |= {f'{at}.layer_norm1': (WIDTH,), f'{at}.layer_norm2': (WIDTH,)}
  return {f'text_model.{name}': value for name, value in _drawn(shapes).items()}


def bert_state():
  shapes = {
    'embeddings.word_embeddings.weight': (len(BERT_WORDS), WIDTH),
    'embeddings.position_embeddings.weight': (40, WIDTH),
    'embeddings.token_type_embeddings.weight': (2, WIDTH),
    'embeddings.LayerNorm': (WIDTH,),
    'pooler.dense': (WIDTH, WIDTH),
  }
  for i in range(LAYERS):
    at = f'encoder.layer.{i}'
    shapes |= {f'{at}.attention.self.{n}': (WIDTH, WIDTH) for n in ('query', 'key', 'value')}
    shapes |= {f'{at}.attention.output.dense': (WIDTH, WIDTH)}
    shapes |= {f'{at}.intermediate.dense': (MLP, WIDTH), f'{at}.output.dense': (WIDTH, MLP)}
    shapes |= {f'{at}.{n}.LayerNorm': (WIDTH,) for n in ('attention.output', 'output')}
  return _drawn(shapes)


def clip_folder(path, state=None, pad='<|endoftext|>', **more):
  """Writes Stable Diffusion's subfolders tokenizer and text_encoder of `path`; returns `path`."""
  config = dict(
    model_type='clip_text_model', vocab_size=len(clip_vocabulary()), max_position_embeddings=77,
    hidden_act='quick_gelu', layer_norm_eps=1e-5, **_CONFIG,
  )  # fmt: skip
  clip_tokenizer(path / 'tokenizer', pad)
  _network(path / 'text_encoder', {**config, **more}, clip_state() if state is None else state)
  return path


def grown(folder, rows, seed=1):
  """Gives CLIP's text tower in `folder` a table of `rows` token embeddings; returns `folder`."""
  name, top = 'text_model.embeddings.token_embedding.weight', folder / 'text_encoder'
  state = safetensors.numpy.load_file(top / 'model.safetensors')
  more = rows - len(state[name])
  new = np.random.default_rng(seed).normal(size=(more, WIDTH)).astype(np.float32)
  state[name] = np.concatenate([state[name], new])
  safetensors.numpy.save_file(state, top / 'model.safetensors')
  put(top / 'config.json', json.dumps({**_read(top / 'config.json'), 'vocab_size': rows}))
  return folder


def edit(file, **fields):
  """Replaces `fields` of the JSON object in `file`, which may be missing."""
  put(file, json.dumps({**(_read(file) if file.exists() else {}), **fields}))


def _read(file):
  return json.loads(file.read_text())


def bert_folder(path, state=None, **more):
  config = dict(
    model_type='bert', vocab_size=len(BERT_WORDS), max_position_embeddings=40, hidden_act='gelu',
    layer_norm_eps=1e-12, type_vocab_size=2, **_CONFIG,
  )  # fmt: skip
  bert_tokenizer(path)
  _network(path, {**config, **more}, bert_state() if state is None else state)
  return path


def put(file: pathlib.Path, text: str) -> None:
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(text, encoding='utf-8')


def _network(folder, config, state):
  put(folder / 'config.json', json.dumps(config))
  safetensors.numpy.save_file(state, folder / 'model.safetensors')


def _drawn(shapes):
  """Returns random arrays of these shapes.

  A name without '.weight' stands for a layer with a bias: a linear layer, or a norm with scales
  around 1.
  """
  rng, found = np.random.default_rng(0), {}
  for name, shape in shapes.items():
    weight = rng.normal(1.0 if len(shape) == 1 else 0.0, 0.2, shape).astype(np.float32)
    found[name if name.endswith('.weight') else f'{name}.weight'] = weight
    if not name.endswith('.weight'):
      found[f'{name}.bias'] = rng.normal(0, 0.2, shape[0]).astype(np.float32)
  return found
