"""What a teacher answers where it teaches: of which view, at which temperature, and what of it is taught."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from kdcli.words.analysis import references, taps_used
from kdcli.words.data import Call, Derive, Method, Turn

_ENDING, _MENDED = "_calibrated", "_mended"
_PLAIN = "x@plain"
_WHOLE = frozenset(("logits", "embedding", "pooled"))  # taps of a picture, whatever the place in it

Errors = Literal["keep", "leave-out", "swap"]


def divided(logits: Any, *, temperature: float) -> Any:
    """Logits of any shape over a temperature, in fp32: softmax of them is that of the calibrated network."""
    return logits.float() / temperature


def without_errors(logits: Any, target: Any, labelled: Any, student: Any) -> Any:
    """Logits [B, C] with those of ``student`` in the rows where they are wrong about a label.

    What compares a network with itself is 0 and has no gradient, so that such a row is left out: a mean still
    divides by all rows. Wen et al. 2019, arXiv 1911.07471, begin with the harm of such rows.

    Args:
        logits: [B, C] of the teacher.
        target: [B] class numbers.
        labelled: [B], which rows have one.
        student: [B, C], detached.
    """
    wrong = labelled & (logits.argmax(dim=1) != target)
    return student.to(logits.dtype).where(wrong[:, None], logits)


def swapped(logits: Any, target: Any, labelled: Any) -> Any:
    """Logits [B, C] whose largest changes places with that of the label, in rows where they are wrong.

    The probability shift of Wen et al. 2019, "Preparing Lessons", arXiv 1911.07471, section 3.2: the true
    class gets the largest probability, the class that was taken for it what the true one had.

    Args:
        logits: [B, C] of the teacher.
        target: [B] class numbers.
        labelled: [B], which rows have one; the others stay as they are.
    """
    true, top = target.clamp(min=0)[:, None], logits.argmax(dim=1, keepdim=True)
    mended = logits.scatter(1, true, logits.gather(1, top)).scatter(1, top, logits.gather(1, true))
    wrong = labelled[:, None] & (top != true)
    return mended.where(wrong, logits)


def shown_whole(method: Method, party: str) -> Method:
    """The method with a party seeing the un-augmented cut of each picture where it was given the views.

    Calls on ``x`` alone of turns that train the exported party see ``x@plain``; others stay as they are.
    """

    def changed(turn: Turn) -> Turn:
        calls = tuple(
            replace(call, inputs=(_PLAIN,)) if _sees_views(call, party) else call for call in turn.calls
        )
        return replace(turn, calls=calls)

    return _where_taught(method, changed)


def placed_taps(method: Method, party: str) -> list[str]:
    """Taps of a party's calls on the views that tell of places in them, which another view has elsewhere."""
    found = dict.fromkeys(
        f"{call.name}.{tap}"
        for turn in method.turns
        if method.export in turn.trains
        for call in turn.calls
        if _sees_views(call, party)
        for tap in taps_used(turn)[call.name]
        if tap not in _WHOLE
    )
    return list(found)


def mended(method: Method, party: str, errors: Errors) -> Method:
    """The method with what is taught of a party's answers where they are wrong about a label.

    Terms and derives of the turns that train the exported party read ``t_mended`` in place of its logits, or
    of the calibrated ones, which :func:`calibrated` has to have made before. Rows without a label, and
    ``keep``, change nothing.

    Args:
        method: one class a picture is what it learns.
        party: whose answers.
        errors: ``leave-out`` (:func:`without_errors`) or ``swap`` (:func:`swapped`).
    """
    if errors == "keep":
        return method

    def changed(turn: Turn) -> Turn:
        student = next((c.name for c in turn.calls if c.party == method.export), "s")
        more = (f"~{student}.logits",) if errors == "leave-out" else ()
        function = without_errors if errors == "leave-out" else swapped

        def derive(call: str, reference: str) -> Derive:
            return Derive(f"{call}{_MENDED}", function, (reference, "target", "labelled", *more))

        return _taught(turn, party, derive)

    return _where_taught(method, changed)


def calibrated(method: Method, party: str, temperature: float) -> Method:
    """The method with a party's logits divided by a temperature wherever the exported party learns from them.

    Terms and derives of the turns that train it read ``t_calibrated`` in place of ``t.logits``. The method's
    own temperature comes on top of it, and caches keep the logits as they are. Other turns, a generator's for
    instance, see what they saw before. A temperature of 1 changes nothing.
    """
    if temperature == 1:
        return method

    def derive(call: str, reference: str) -> Derive:
        return Derive(f"{call}{_ENDING}", divided, (reference,), {"temperature": temperature})

    return _where_taught(method, lambda turn: _taught(turn, party, derive))


def answers(turn: Turn, party: str, inputs: Sequence[str]) -> str:
    """The reference of a party's logits for one of these inputs, as the turn reads them; empty for none."""
    for call in turn.calls:
        if call.party == party and len(call.inputs) == 1 and call.inputs[0] in inputs:
            read = {reference.removeprefix("~") for reference in references(turn)}
            known = (f"{call.name}{_ENDING}", f"{call.name}.logits")
            return next((name for name in known if name in read), "")
    return ""


def _where_taught(method: Method, changed: Callable[[Turn], Turn]) -> Method:
    """The method with its turns that train the exported party changed."""

    def one(turn: Turn) -> Turn:
        return changed(turn) if method.export in turn.trains else turn

    phases = tuple(replace(phase, turns=tuple(map(one, phase.turns))) for phase in method.phases)
    return replace(method, phases=phases)


def _sees_views(call: Call, party: str) -> bool:
    return call.party == party and call.inputs == ("x",)


def _taught(turn: Turn, party: str, derive: Callable[[str, str], Derive]) -> Turn:
    """The turn with a derive of the answers of each of a party's calls wherever these are read.

    Args:
        turn: of a method.
        party: whose calls.
        derive: makes it, of the call's name and a reference to its answers as they are read so far.
    """
    read = references(turn)
    derives, names = [], {}
    for call in (call for call in turn.calls if call.party == party):
        for known in (f"{call.name}{_ENDING}", f"{call.name}.logits"):
            uses = {reference for reference in read if reference.removeprefix("~") == known}
            if uses:
                derives.append(derive(call.name, known if known in uses else f"~{known}"))
                names[known] = derives[-1].out
                break

    def renamed(args: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_renamed(reference, names) for reference in args)

    made = {name for name in names if name in {d.out for d in turn.derives}}  # of these the source stays
    return replace(
        turn,
        calls=tuple(replace(call, inputs=renamed(call.inputs)) for call in turn.calls),
        terms=tuple(replace(term, args=renamed(term.args)) for term in turn.terms),
        derives=(
            *(d for d in turn.derives if d.out in made),
            *derives,
            *(replace(d, args=renamed(d.args)) for d in turn.derives if d.out not in made),
        ),
    )


def _renamed(reference: str, names: dict[str, str]) -> str:
    text = reference.removeprefix("~")
    return reference if text not in names else f"{'~' if text != reference else ''}{names[text]}"
