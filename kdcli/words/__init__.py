"""The words a method is written in, as data; :mod:`kdcli.words.analysis` reads what is written. No torch."""

from kdcli.words.data import Call, Derive, Edit, Method, Party, Phase, Span, State, Term, Turn
from kdcli.words.recipes import Recipe
from kdcli.words.schedules import Linear, RampUp, Until, Warmup, Weight

__all__ = [
    "Call",
    "Derive",
    "Edit",
    "Linear",
    "Method",
    "Party",
    "Phase",
    "RampUp",
    "Recipe",
    "Span",
    "State",
    "Term",
    "Turn",
    "Until",
    "Warmup",
    "Weight",
]
