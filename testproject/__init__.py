"""A small guest book with accounts, to see django-asyncbridge at work and to test it on a real site."""
