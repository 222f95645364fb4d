"""Certificates that need no solver to check: made here with z3's help, checked by ``compcomp.checking``."""
