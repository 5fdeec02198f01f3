"""Micro-expression recognition: μ-BERT."""
