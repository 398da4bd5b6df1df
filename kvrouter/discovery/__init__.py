"""Who is there: workers' records of what they serve and how they are reached, kept in a key-value store.

    async with Discovery(open_key_value_store("etcd://127.0.0.1:2379")) as discovery:
        registration = await discovery.register(record)

Public: `Discovery`, `Registration`, the records, and `Directory`, which follows them.
"""

from kvrouter.discovery.directory import Directory
from kvrouter.discovery.records import Instance, TransportEndpoint, decode_instance, encode_instance, instance_key
from kvrouter.discovery.registry import Discovery, Registration

__all__ = [
    "Directory",
    "Discovery",
    "Instance",
    "Registration",
    "TransportEndpoint",
    "decode_instance",
    "encode_instance",
    "instance_key",
]
