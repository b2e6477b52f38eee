"""The bridge library: asgiref's modules and names, on the standard library alone.

Replace ``asgiref.`` by ``django_asyncbridge.bridge.`` in an import and the code means the same. Public
modules have asgiref's names; modules with a leading underscore hold one concern each and may change.
"""
