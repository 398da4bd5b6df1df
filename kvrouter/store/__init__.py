"""Where a router keeps what must outlive it: whole objects, and small values with revisions.

`open_object_store` and `open_key_value_store` choose the backend by the scheme of a URL: a local directory, NATS
JetStream or Redis. A backend's client is loaded with its first use only.

    async with open_object_store("file:///var/lib/kvrouter") as store:
        info = await store.put("snapshots", "radix-state-17", dump)
"""

from kvrouter.store.key_values import Conflict, Entry, Exists, KeyValueBucket, KeyValueStore, open_key_value_store
from kvrouter.store.leases import Lease, acquire
from kvrouter.store.objects import ObjectInfo, ObjectStore, open_object_store

__all__ = [
    "Conflict",
    "Entry",
    "Exists",
    "KeyValueBucket",
    "KeyValueStore",
    "Lease",
    "ObjectInfo",
    "ObjectStore",
    "acquire",
    "open_key_value_store",
    "open_object_store",
]
