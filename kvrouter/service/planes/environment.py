"""What the settings and the planes' own variables (`KVROUTER_...`, or `DYN_...` as in NVIDIA Dynamo) say together."""

from collections.abc import Mapping
from typing import Final

from kvrouter.service.planes.ways import PlaneChoices
from kvrouter.settings import Settings
from kvrouter.transport.http_settings import http_plane_settings
from kvrouter.transport.plane_settings import REQUEST_PLANES, log_levels, plane_settings
from kvrouter.transport.variables import variables_read

__all__ = ["PLANE_VARIABLES", "plane_choices"]

PLANE_VARIABLES: Final = variables_read(plane_settings, http_plane_settings, log_levels)
"""Read here, and therefore not misspelt names of settings."""
_NATS_SERVER: Final = "nats://127.0.0.1:4222"


def plane_choices(settings: Settings, environment: Mapping[str, str]) -> PlaneChoices | None:
    """How workers that discovery finds are reached; None where none are looked for.

    Raises:
        SettingsError: a variable has a value that is none, whether or not it is needed here.
    """
    planes, http = plane_settings(environment), http_plane_settings(environment)
    ours = settings.planes
    if not ours.discovery:
        return None
    preferred = next((plane for plane in REQUEST_PLANES if plane == ours.request_plane), planes.request_plane)
    nats_server = ours.nats_server
    if not nats_server and preferred == "nats":
        nats_server = environment.get("NATS_SERVER", "").strip() or _NATS_SERVER
    return PlaneChoices(
        preferred=preferred,
        nats_server=nats_server,
        host=settings.server.host,
        connect_seconds=settings.limits.connect_seconds,
        planes=planes,
        http=http,
    )
