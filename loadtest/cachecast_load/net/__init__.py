"""Sockets and bytes: one epoll loop, connections, HTTP answers, WebSocket frames."""
