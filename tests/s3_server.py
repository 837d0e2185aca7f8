"""A server of S3 on loopback, for tests: a process of its own, which the environment names."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def serving(folder: Path) -> Iterator[dict[str, str]]:
    """Start the server, its log in `folder`; the environment in which every client finds it, as this process does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "ada",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    }
    log = folder / "s3.log"
    with pytest.MonkeyPatch.context() as patch, log.open("w") as output:
        for name, value in own.items():
            patch.setenv(name, value)
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | own)
        try:
            _wait_for(own["AWS_ENDPOINT_URL"] + "/moto-api/data.json", process, log)
            yield own
        finally:
            process.terminate()
            process.wait()


@contextmanager
def holding(bucket: str, folder: Path, files: Mapping[str, bytes]) -> Iterator[Any]:
    """A client of a server as above, with a bucket and files in it."""
    boto3, fsspec = pytest.importorskip("boto3"), pytest.importorskip("fsspec")
    with serving(folder):
        client = boto3.client("s3")
        client.create_bucket(Bucket=bucket)
        for key, content in files.items():
            client.put_object(Bucket=bucket, Key=key, Body=content)
        yield client
    fsspec.filesystem("s3").clear_instance_cache()


def _wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
