"""Where a router keeps what must outlive it: whole objects, small values with revisions, queues.

`open_object_store`, `open_key_value_store` and `open_message_queues` choose the backend by the scheme of a URL: a local
directory, NATS JetStream or Redis. A backend's client is loaded with its first use only.

    async with open_object_store("file:///var/lib/kvrouter") as store:
        info = await store.put("snapshots", "radix-state-17", dump)
"""

from kvrouter.store.key_values import Conflict, Entry, Exists, KeyValueBucket, KeyValueStore, open_key_value_store
from kvrouter.store.leases import Lease, acquire
from kvrouter.store.objects import ObjectInfo, ObjectStore, open_object_store
from kvrouter.store.queues import MessageQueue, MessageQueues, QueueConsumer, QueueLimits, open_message_queues

__all__ = [
    "Conflict",
    "Entry",
    "Exists",
    "KeyValueBucket",
    "KeyValueStore",
    "Lease",
    "MessageQueue",
    "MessageQueues",
    "ObjectInfo",
    "ObjectStore",
    "QueueConsumer",
    "QueueLimits",
    "acquire",
    "open_key_value_store",
    "open_message_queues",
    "open_object_store",
]
