"""The Feast repo: encoders declared in `catalog.py` become feature views, and what every component reads from them."""
