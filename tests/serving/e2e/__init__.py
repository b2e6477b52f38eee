"""End-to-end tests: the real ``manage.py runasgi`` in child processes, asked through sockets.

`site` is the project that is served, `servers` starts the command, `wire` speaks HTTP/1.1 byte by byte, `load` keeps asking and counts.
"""
