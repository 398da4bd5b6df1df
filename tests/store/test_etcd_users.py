"""An etcd that asks who we are: it forgets its tokens when it dies and when nobody shows them; we get new ones."""

import asyncio
from pathlib import Path

import grpc
import pytest
from aetcd import rpc

from kvrouter.errors import StoreError
from kvrouter.store import open_key_value_store
from tests.servers import EtcdServer, etcd_server
from tests.store.conftest import Run
from tests.store.test_watching import Follower, persistently


async def ask_for_passwords(server: EtcdServer) -> str:
    """Turn users on; returns the URL of one that may do everything."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        users = rpc.AuthStub(channel)
        await users.RoleAdd(rpc.AuthRoleAddRequest(name="root"))
        await users.UserAdd(rpc.AuthUserAddRequest(name="root", password="secret"))
        await users.UserGrantRole(rpc.AuthUserGrantRoleRequest(user="root", role="root"))
        await users.AuthEnable(rpc.AuthEnableRequest())
    return server.url.replace("//", "//root:secret@") + "/prefix"


@pytest.mark.parametrize("token_seconds", [0.0, 600.0], ids=["before-it-is-old", "when-it-is-refused"])
def test_a_token_that_is_forgotten_is_replaced(
    token_seconds: float, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A-353: values and open watches outlive a server that is killed, also where it knows nobody afterwards."""
    monkeypatch.setattr("kvrouter.store.etcd_keys._TOKEN_SECONDS", token_seconds)

    async def scenario(server: EtcdServer) -> None:
        url = await ask_for_passwords(server)
        async with open_key_value_store(url) as store:
            bucket = store.bucket("guarded")
            await bucket.put("before", b"1")
            follower = Follower(bucket)
            await follower.until(lambda seen: seen.values == {"before": b"1"})
            await asyncio.to_thread(server.restart)
            await persistently(lambda: bucket.put("after", b"2"))
            await follower.until(lambda seen: seen.values == {"before": b"1", "after": b"2"})
            await follower.close()
        async with open_key_value_store(url.replace("secret", "another")) as stranger:
            with pytest.raises(StoreError) as refused:
                await stranger.bucket("guarded").get("before")
            assert "another" not in str(refused.value)

    with etcd_server(tmp_path) as server:
        run(scenario(server))
