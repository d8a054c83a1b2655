"""The sections of `panel.py`: a file for each subject."""
