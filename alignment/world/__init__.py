"""A synthetic world whose hierarchy is known: drawings, and observers who judge them."""
