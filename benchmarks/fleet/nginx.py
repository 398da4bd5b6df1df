"""Configuration of nginx in two roles: workers that answer at once, and a plain proxy to compare with."""

import getpass
import json
import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.fleet.answers import COMPLETION, FIXED

__all__ = ["proxy_configuration", "workers_configuration"]


def workers_configuration(folder: Path, ports: Sequence[int], processes: int) -> str:
    """Return a configuration that answers as `len(ports)` engines would, without any work."""
    listens = "\n".join(f"    listen 127.0.0.1:{port} reuseport backlog=4096;" for port in ports)
    fixed = "\n".join(
        f"    location = {path} {{ return 200 '{json.dumps(answer)}'; }}" for path, answer in FIXED.items()
    )
    completion = json.dumps(COMPLETION)
    return f"""{_head(folder, processes)}
  server {{
{listens}
{fixed}
    location = /tokenize {{ return 404; }}
    location /v1/ {{ return 200 '{completion}'; }}
  }}
}}
"""


def proxy_configuration(folder: Path, port: int, workers: Sequence[int]) -> str:
    """Return nginx as a plain round-robin proxy with kept connections: no routing logic, no buffering of answers."""
    servers = "\n".join(f"    server 127.0.0.1:{worker};" for worker in workers)
    return f"""{_head(folder, 1)}
  upstream workers {{
{servers}
    keepalive 512;
    keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://workers;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""


def _head(folder: Path, processes: int) -> str:
    user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
    return f"""daemon off;
{user}
worker_processes {processes};
pid {folder}/nginx.pid;
error_log stderr crit;
worker_rlimit_nofile 65536;
events {{ worker_connections 16384; }}
http {{
  access_log off;
  default_type application/json;
  tcp_nodelay on;
  keepalive_timeout 600s;
  keepalive_requests 1000000000;
  client_max_body_size 64m;
  client_body_buffer_size 256k;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
"""
