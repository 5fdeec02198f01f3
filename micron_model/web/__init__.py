"""The page that ``micron serve`` shows in a browser: ``app.py`` answers it, ``jobs.py`` works, ``results.py`` draws."""
