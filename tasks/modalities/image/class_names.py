"""How the classes of the data sets at hand are called, for captions."""

from __future__ import annotations

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_CLOTHES = ("T-shirt", "pair of trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
#: Class names of Fashion-MNIST on the Hugging Face hub, in order; IDX files number them.
_HUB = ("T - shirt / top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

#: Class to its name in a sentence.
DIGITS = {str(i): name for i, name in enumerate(_NUMBERS)}
FASHION = {key: name for i, name in enumerate(_CLOTHES) for key in (str(i), _HUB[i])}
#: Class to a whole caption.
DIGIT_CAPTIONS = {key: f"a handwritten {name}" for key, name in DIGITS.items()}
FASHION_CAPTIONS = {key: f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for key, name in FASHION.items()}
