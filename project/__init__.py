"""This installation: the components on one screen (app.py), and what each of them contributes.

Nothing is imported here, so that a module can be read without making an app.
"""
