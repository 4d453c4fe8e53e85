"""nginx with the nchan module: a C server that fans out over WebSocket."""

from __future__ import annotations

import getpass
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from typing_extensions import override

from cachecast_bench.dialects import Endpoint
from cachecast_bench.peers.base import Peer, find_program
from cachecast_bench.process import child_process, free_port, write_config
from cachecast_bench.target import Certificate, Running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_MODULES = (
    Path("/usr/lib/nginx/modules/ngx_nchan_module.so"),
    Path("/usr/lib64/nginx/modules/ngx_nchan_module.so"),
)

_CONFIG = """
load_module {module};
user {user};
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {folder}/nginx.pid;
error_log stderr error;
events {{ worker_connections 19000; multi_accept on; }}
http {{
    access_log off;
    tcp_nodelay on;
    keepalive_timeout 3600;
    keepalive_requests 100000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    nchan_shared_memory_size 512M;
    server {{
        listen 127.0.0.1:{port}{tls} backlog=4096;
        {certificate}
        location = /sub {{
            nchan_subscriber websocket;
            nchan_channel_id $arg_id;
            nchan_subscriber_first_message newest;
            nchan_websocket_ping_interval 0;
        }}
        location = /pub {{
            nchan_publisher http;
            nchan_channel_id $arg_id;
            nchan_message_buffer_length 1000;
            nchan_message_timeout 60s;
        }}
    }}
}}
"""


class Nchan(Peer):
    """One worker, as one core is all that anybody gets here."""

    name = "nchan"
    title = "nginx with nchan (C)"
    install = "apt-get install nginx libnginx-mod-nchan"
    program = "nginx"
    version_options = ("-v",)
    configuration = "1 worker, WebSocket subscribers, HTTP publishes kept alive, 512 MiB shared"
    supports_tls = True

    @override
    def is_installed(self) -> bool:
        """Say whether both nginx and the module are there."""
        return super().is_installed() and any(module.exists() for module in _MODULES)

    @asynccontextmanager
    @override
    async def start(
        self, core: int, certificate: Certificate | None = None
    ) -> AsyncIterator[Running]:
        """Run nginx in the foreground, all of its files in a temporary folder."""
        port = free_port()
        with TemporaryDirectory() as folder:
            text = _CONFIG.format(
                module=next(module for module in _MODULES if module.exists()),
                user=getpass.getuser(),
                folder=folder,
                port=port,
                tls=" ssl" if certificate else "",
                certificate=f"ssl_certificate {certificate.cert}; "
                f"ssl_certificate_key {certificate.key};"
                if certificate
                else "",
            )
            config = write_config(folder, "nginx.conf", text)
            command = [find_program(self.program) or self.program, "-p", folder, "-c", config]
            async with child_process(self.name, command, core=core) as child:
                await child.wait_listening(port)
                endpoint = Endpoint("nchan", port, tls=certificate is not None)
                yield Running(self.name, child, endpoint, self.notes())
