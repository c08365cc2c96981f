"""How human a representation is: every measure is a function of features."""
