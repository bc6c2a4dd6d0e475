"""Drafters that fill masked positions."""
