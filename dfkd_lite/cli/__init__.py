"""The command ``dfkd``."""
