"""Departments, classes, users, semesters, lessons, events and subscriptions."""
