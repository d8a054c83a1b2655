"""What `native.py` judges, a subject a file: each has `checks(rig)`, a list of (name, call)."""
