"""Holds the command ``dfkd``."""
