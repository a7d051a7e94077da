"""Object stores for tests: one in memory, and an S3 emulator on this machine."""

import contextlib
import uuid

import pytest
from etils.epath import backend
from fsspec.implementations import memory as fsspec_memory

REASON = "pip install 'moto[server]' s3fs boto3 to run against an S3 emulator"


def refuse(*args, **kwargs):
  """Stands for an operation that object stores do not have."""
  raise NotImplementedError('an object store cannot do this')


class Memory(fsspec_memory.MemoryFileSystem):
  """A file system in memory that, like an object store, knows neither append nor rename."""

  protocol = 's3'
  cachable = False
  mv = move = rename = copy = cp_file = refuse

  @classmethod
  def _strip_protocol(cls, path):
    return '/' + str(path).removeprefix('s3://').strip('/')

  def _open(self, path, mode='rb', **kwargs):
    assert 'a' not in mode and '+' not in mode
    return super()._open(path, mode, **kwargs)


def in_memory(monkeypatch):
  """Returns the name of a new bucket in memory, for this process alone."""
  store = Memory()
  store.store, store.pseudo_dirs = {}, ['']
  store.mkdir('s3://bucket')
  monkeypatch.setattr(backend.fsspec_backend, '_get_filesystem', lambda name: store)
  return 's3://bucket'


def without_rename(monkeypatch):
  """Makes s3fs refuse in this process what an object store cannot do in one operation."""
  import s3fs

  for forbidden in ('mv', 'move', 'rename', 'copy', 'cp_file'):
    monkeypatch.setattr(s3fs.S3FileSystem, forbidden, refuse)
  store = s3fs.S3FileSystem(skip_instance_cache=True)
  monkeypatch.setattr(backend.fsspec_backend, '_get_filesystem', lambda name: store)


@contextlib.contextmanager
def s3(monkeypatch):
  """Yields the name of a new bucket, for this process and the processes that it starts."""
  for name in ('flask', 'flask_cors', 'boto3', 's3fs'):
    pytest.importorskip(name, reason=REASON)
  server = pytest.importorskip('moto.server', reason=REASON).ThreadedMotoServer(
    ip_address='127.0.0.1', port=0, verbose=False
  )
  server.start()
  host, port = server.get_host_and_port()
  for name, value in {
    'AWS_ENDPOINT_URL': f'http://{host}:{port}', 'AWS_ACCESS_KEY_ID': 'none',
    'AWS_SECRET_ACCESS_KEY': 'none', 'AWS_DEFAULT_REGION': 'us-east-1',
  }.items():  # fmt: skip
    monkeypatch.setenv(name, value)
  import boto3

  bucket = f'bucket-{uuid.uuid4()}'  # all servers of a process share what they hold
  boto3.client('s3').create_bucket(Bucket=bucket)
  try:
    yield f's3://{bucket}'
  finally:
    server.stop()
