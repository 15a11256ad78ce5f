"""Turns requests into answers: who calls, which version, is it resident, generate, count."""
