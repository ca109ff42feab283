"""The words a method is written in, as data; :mod:`kdcli.words.analysis` reads what is written. No torch."""

from kdcli.words.data import Call, Derive, Method, Party, Phase, Span, Term, Turn
from kdcli.words.recipes import Recipe
from kdcli.words.schedules import Linear, RampUp, Until, Weight

__all__ = [
    "Call",
    "Derive",
    "Linear",
    "Method",
    "Party",
    "Phase",
    "RampUp",
    "Recipe",
    "Span",
    "Term",
    "Turn",
    "Until",
    "Weight",
]
