"""The commands that ``manage.py`` finds, one module each."""
