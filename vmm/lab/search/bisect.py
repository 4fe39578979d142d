"""Find the kernel that changed: one step, for packages and commits, and a search over packages."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vmm.conformance.cases import CASES
from vmm.conformance.judge.selection import Chosen, choose
from vmm.conformance.records import places
from vmm.conformance.records.saved import Saved
from vmm.conformance.records.status import Status
from vmm.lab import append
from vmm.lab.errors import LabError
from vmm.lab.kernels import packaged
from vmm.lab.kernels.kernels import Kernel
from vmm.lab.runs import matrix
from vmm.lab.runs.matrix import Cell
from vmm.lab.runs.order import Inner, Order
from vmm.lab.search.together import Judge, Together, one_by_one
from vmm.lab.search.verdict import Evidence, Question, Step, combine, judge

_STEPS = "steps.jsonl"


@dataclass(frozen=True, slots=True)
class Place:
    """Where kernels are asked: the machine's vendor, a guest's seconds, where records are kept.

    `debug` says that the kernels are built to check themselves, `append` is added to their
    command lines. The records of what is called NAME are below NAME-VENDOR (NAME-VENDOR-debug,
    NAME-VENDOR-APPEND); ``steps.jsonl`` has each answer, and to what.
    """

    vendor: str
    directory: Path
    limit: float = 600.0
    debug: bool = False
    append: str = ""

    def order(self, question: Question, kernel: Kernel) -> Order:
        """Return what is to be run of `kernel`."""
        how = (Inner(), self.limit, self.append)
        return Order(kernel, self.vendor, _chosen(question), *how, again=False)

    def records(self, name: str, number: int = 0) -> Path:
        """Return the directory of one boot of what is called `name`."""
        flavour = f"{self.vendor}{'-debug' * self.debug}{append.suffix(self.append)}"
        return self.directory / f"{name}-{flavour}{f'-{number}' * bool(number)}"

    def _asked(self, question: Question) -> dict[str, object]:
        about = {"case": question.case, "observe": question.observe}
        return {**about, "vendor": self.vendor, "debug": self.debug, "append": self.append}

    def note(self, question: Question, name: str, evidence: Evidence) -> Evidence:
        """Write the answer down."""
        said = {"name": name, "step": evidence.step.name, "line": evidence.line}
        line = {**self._asked(question), **said}
        with places.directory(self.directory) as held:
            places.append(_STEPS, held, json.dumps(line) + "\n")
        return evidence

    def answers(self, question: Question) -> dict[str, Evidence]:
        """Return the answers to `question` that are written down, in the order of asking."""
        found = {}
        path = self.directory / _STEPS
        for number, line in enumerate(_noted_lines(path), start=1):
            noted = _noted(path, number, line)
            if not self._asked(question).items() <= noted.items():
                continue
            records = self.records(noted["name"])
            said = "; ".join(filter(None, (noted["line"], Cell.damage(records))))
            found[noted["name"]] = Evidence(Step[noted["step"]], said, Cell.on_record(records))
        return found


def _noted_lines(path: Path) -> list[str]:
    try:
        return places.read_regular(path).decode().splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise LabError(f"cannot read {path}: {error}") from None


def _noted(path: Path, number: int, line: str) -> dict[str, str]:
    """Return an answer that was written down; LabError says which line is none."""
    try:
        noted: dict[str, str] = json.loads(line)
        Step[noted["step"]], f"{noted['name']}/", f"{noted['line']}"
    except (ValueError, KeyError, TypeError, RecursionError):
        again = "remove it to ask all kernels again"
        raise LabError(f"{path} is damaged at line {number}: {again}") from None
    return noted


@dataclass(frozen=True, slots=True)
class Boundary:
    """Two kernels that differ, and what was seen of each kernel that was asked, in order.

    `untested` are those between the two that could not be tested; without any, they are neighbours.
    """

    last_good: str
    first_bad: str
    untested: tuple[str, ...]
    asked: tuple[tuple[str, Evidence], ...]
    rounds: int = 0
    """How often several kernels were asked at once; as often as kernels were, one by one."""


def step(
    place: Place,
    question: Question,
    name: str,
    kernel: Callable[[], Kernel],
    *,
    repeat: int = 1,
    by: matrix.Judge = matrix.judge,
) -> Evidence:
    """Judge the kernel called `name`, `repeat` times for cases that race; answer the question.

    `by` judges a cell, here or elsewhere.

    What an earlier bisection has on record in the same place is not asked again, and then
    `kernel`, which may have to be fetched or built, is not called.
    """
    boots = [_once(place, question, place.records(name, n), kernel, by) for n in range(repeat)]
    return place.note(question, name, combine(boots))


def _once(
    place: Place,
    question: Question,
    directory: Path,
    kernel: Callable[[], Kernel],
    by: matrix.Judge,
) -> Evidence:
    if saved := _on_record(directory, question):
        return judge(question, saved)
    damage = Cell.damage(directory)
    cell = Cell(kernel(), place.vendor, directory, place.append)
    trouble = by(cell, place.order(question, cell.kernel))
    saved = cell.saved
    found = judge(question, saved) if saved else Evidence(Step.SKIP, trouble or cell.lacks)
    return replace(found, line=f"{found.line}; asked again: {damage}") if damage else found


def _on_record(directory: Path, question: Question) -> Saved | None:
    """Return the records of a run that judged all that is asked, or says why it could not."""
    saved = Cell.on_record(directory)
    if not saved or not saved.end or saved.end["interrupted"]:
        return None
    lost = saved.end["status"] == Status.TROUBLE
    return saved if lost or set(_chosen(question).ids) <= set(saved.cases) else None


def _chosen(question: Question) -> Chosen:
    return choose(CASES, [question.case])


def step_status(answer: Callable[[], Evidence], say: Callable[[str], None]) -> int:
    """Return the exit status of a bisection step: 0, 1 or 125, whatever goes wrong.

    git bisect run stops at 128 and above and takes any other failure for "bad", so a failed
    build, a missing emulator and a bug of ours must all end as 125.
    """
    try:
        evidence = answer()
    except Exception as error:  # see above: nothing but "cannot be tested" may come of it
        say(f"skip: {str(error) or type(error).__name__}")
        return Step.SKIP
    say(f"{evidence.step.name.lower()}: {evidence.line}")
    return evidence.step


def between(good: str, bad: str) -> list[str]:
    """Return the packaged kernels from `good` to `bad`, oldest first, one of each version."""
    ordered = list(dict.fromkeys(k.name for k in packaged.reachable() if not k.lacks))
    ends = [_position(ordered, wish) for wish in (good, bad)]
    low, high = min(ends), max(ends)
    chosen = ordered[low : high + 1]
    return chosen if ends == sorted(ends) else chosen[::-1]


def _position(ordered: Sequence[str], wish: str) -> int:
    release = packaged.newest(wish).name
    if release not in ordered:
        raise LabError(f"{wish} is no packaged kernel; `msrward lab kernels` lists them")
    return ordered.index(release)


def search(
    names: Sequence[str],
    answer: Judge,
    on_step: Callable[[str, Evidence], None],
    *,
    jobs: int = 1,
    together: Together | None = None,
) -> Boundary:
    """Find two neighbours, the first good and the second bad; the ends are asked as well.

    A kernel that cannot be tested is passed over for the nearest one that can. Each round asks
    `jobs` kernels, which leaves a part in `jobs` + 1 of those between; ``together`` asks several at
    once (one by one, if it is None). Where good kernels come before bad ones the finding is the
    same for any `jobs`. Raises :class:`LabError` where the ends are not good and bad.
    """
    asked: list[tuple[str, Evidence]] = []
    rounds = 0

    def ask(indices: Sequence[int]) -> list[Step]:
        nonlocal rounds
        rounds += 1
        found = (together or one_by_one)(answer, [names[index] for index in indices])
        for index, evidence in zip(indices, found, strict=True):
            asked.append((names[index], evidence))
            on_step(names[index], evidence)
        return [evidence.step for evidence in found]

    ends = (0, Step.GOOD), (len(names) - 1, Step.BAD)
    groups = [ends] if jobs > 1 else [(end,) for end in ends]
    for group in groups:
        first = len(asked)
        for (index, wanted), got in zip(group, ask([index for index, _ in group]), strict=True):
            if got is not wanted:
                line = dict(asked[first:])[names[index]].line
                seen = f"{got.name.lower()} ({line})"
                raise LabError(f"{names[index]} should be {wanted.name.lower()}, but is {seen}")
    low, high = _narrow(0, len(names) - 1, ask, jobs)
    return Boundary(names[low], names[high], tuple(names[low + 1 : high]), tuple(asked), rounds)


def _narrow(
    low: int, high: int, ask: Callable[[Sequence[int]], list[Step]], jobs: int
) -> tuple[int, int]:
    """Cut the range into parts until nothing between its ends can be tested."""
    untestable: set[int] = set()
    while left := [index for index in range(low + 1, high) if index not in untestable]:
        cuts = sorted({left[len(left) * part // (jobs + 1)] for part in range(1, jobs + 1)})
        for index, step in zip(cuts, ask(cuts), strict=True):
            if step is Step.SKIP:
                untestable.add(index)
            elif step is Step.GOOD and index < high:
                low = index
            elif step is Step.BAD:
                high = min(high, index)
    return low, high
