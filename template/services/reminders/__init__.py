"""Reminders: a small noun that shows each part of a project once. Replace it by your own."""
