"""Recognizers of micro-expressions, a module each."""
