"""How the command line speaks with a node that runs on this machine: the control socket.

A Unix socket in the file system, for whoever the node belongs to and for root; nobody else gets as
far as a word. ``place`` is where it lies and who may, ``line`` the messages on it, which can carry
open files, ``desk`` the node's side and ``ask`` the caller's. What can be asked is known by those
who add it (:meth:`~cachecast.control.desk.ControlDesk.add`).

A node that nobody asks pays an open file for it, and nothing else.
"""
