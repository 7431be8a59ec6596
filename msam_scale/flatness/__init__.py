"""Flatness: how sharp a minimum is, and which minima a method can stay in."""
