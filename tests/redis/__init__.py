"""What only a real Redis shows: whether each message is handled once, and which are lost when something dies.

Left out unless ``ASYNCBRIDGE_TEST_REDIS`` says where a Redis server is, as "redis://127.0.0.1:6379/9"; these tests use keys with a
prefix of their own there. What restarts Redis does so with a server of its own, and is left out where there is no ``redis-server``.
"""
