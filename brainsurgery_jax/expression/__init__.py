"""The language of `compute`: an expression is parsed, typed, cut into parts and evaluated."""
