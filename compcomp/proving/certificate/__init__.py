"""Make certificates that need no solver to check. z3 helps to find them, ``compcomp.checking`` checks them."""
