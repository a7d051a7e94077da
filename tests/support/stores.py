"""An S3 emulator on this machine."""

import contextlib

import pytest

REASON = "pip install 'moto[server]' s3fs boto3 to run against an S3 emulator"


@contextlib.contextmanager
def s3(monkeypatch):
  """The name of a new bucket, for this process and those it starts."""
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

  boto3.client('s3').create_bucket(Bucket='bucket')
  try:
    yield 's3://bucket'
  finally:
    server.stop()
