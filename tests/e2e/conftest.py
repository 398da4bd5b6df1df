"""Servers that a module of tests shares."""

from collections.abc import Iterator

import pytest

from tests.servers import EtcdServer, etcd_server


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """An etcd for one module."""
    with etcd_server(tmp_path_factory.mktemp("etcd")) as server:
        yield server
