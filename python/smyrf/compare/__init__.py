"""What the program `smyrf compare` is made of; private, but for examples and tools of this tree."""
