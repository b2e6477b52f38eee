"""What only a real server shows: connections, transactions left open, a server that goes away.

Left out unless ``ASYNCBRIDGE_TEST_POSTGRES`` says where a PostgreSQL server is, as "host=127.0.0.1 user=postgres"; that user
has to be allowed to create databases. Each test runs a program of its own against a database of these tests.
"""
