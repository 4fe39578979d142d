"""Fuzz, stress and churn in a guest, seen from outside; what stands for the boot says so."""

import json

import pytest

from vmm.cli import main
from vmm.cli import sampled as command
from vmm.conformance.judge.check import Trouble
from vmm.conformance.language import codec
from vmm.conformance.language.script import gp, rdmsr, returned
from vmm.conformance.random.corpus import document
from vmm.conformance.random.finding import Drawn, Finding, as_case
from vmm.conformance.records.jsonl import live
from vmm.conformance.records.saved import load
from vmm.conformance.records.summary import end_record
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.report import rerun
from vmm.lab.errors import LabError
from vmm.lab.kernels import kernels, packaged
from vmm.lab.kernels.kernels import Kernel
from vmm.lab.machines import emulators, machine
from vmm.lab.machines.machine import LabResult, Outcome
from vmm.lab.runs.claims import Damaged
from vmm.lab.runs.sampled import Samples, Sampling
from vmm.msr import Msr

HOST = {"release": "6.6.6", "vendor_module": "kvm_amd"}
RUN = {"type": "run", "cases": 1, "catalogue": 1, "resumed": 0, "kernel_log": "watched"}
SCRIPT = (rdmsr(Msr.STAR),)
DIFFERS = Finding(SCRIPT, (returned(0),), (gp,), 0, "theirs; rm -rf /")
FOUND = as_case(DIFFERS, 20, drawn=Drawn(7, 20))
PASSED = as_case(None, 20)
AGAIN = "msrward lab fuzz --kernel debian:6.6 --vendor svm"


def stressed(verdict="PASS", **more):
    fixed = {"type": "case", "id": "stress.swaps", "sentence": "S.", "ms": 1.0}
    return {**fixed, "requirements": ["R14", "R99"], "verdict": Verdict(verdict), **more}


def ended(*cases, **changes):
    return {**end_record(cases, 1.0), "report": ["a line", "another"], **changes}


def lines(*records):
    return [json.dumps({"schema": 1, **record, "host": HOST}) for record in records]


def feed(of, *records):
    samples = Samples(of)
    for line in lines(*records):
        samples.take(line)
    return samples


class Guest:
    """Stands for a boot: says ``lines`` and ends with ``status``."""

    def __init__(self):
        self.lines, self.status, self.outcome = [], 0, Outcome.DONE

    def boot(self, kernel, vendor, argv, *, timeout, append, cpu, files, listener):
        self.files = files
        self.argv, self.timeout, self.append, self.cpu = argv, timeout, append, cpu
        for line in self.lines:
            listener.line(line)
            listener.tick()
        status = self.status if self.outcome is Outcome.DONE else None
        return LabResult(self.outcome, status, (), ("oops",), 1.0, 2.0, "q", 1, "it panicked")


@pytest.fixture
def guest(monkeypatch, tmp_path):
    guest = Guest()
    monkeypatch.setattr(machine, "boot", guest.boot)
    monkeypatch.setattr(kernels, "resolve", lambda name: Kernel(name, "6.6.6", tmp_path))
    monkeypatch.setattr(
        machine, "emulator_of", lambda _: type("E", (), {"title": "qemu 11", "accelerated": False})
    )
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return guest


def lab(*words):
    return main(["lab", words[0], "--kernel", "debian:6.6", *words[1:]])


def test_the_guest_gets_the_options_and_the_host_keeps_its_records(guest, tmp_path, capsys):
    guest.lines = [live("0.5 s: 3 swaps/s"), *lines(RUN, stressed(), ended(stressed()))]
    more = ("--append", "kvm.x=1", "--seconds", "2", "--seed", "5", "-o", str(tmp_path / "o"))
    assert lab("stress", *more) == 0
    own = ("--json", "--seconds=2.0", "--installers=2", "--seed=5")
    assert guest.argv[-7:] == ("-m", "vmm", "stress", *own)
    assert (guest.append, guest.timeout) == ("kvm.x=1", command.WALL + 2 * command.WALL_A_SECOND)
    said = capsys.readouterr().out
    assert "a line\nanother\n" in said
    where = "--kernel debian:6.6 --vendor svm --append kvm.x=1"
    assert f"again: msrward lab stress {where} --seconds=2.0 --installers=2 --seed=5" in said
    saved = load(tmp_path / "o")
    assert saved.host["lab"]["kernel"] == "debian:6.6" and saved.end["lab"]["outcome"] == "done"
    case = saved.cases["stress.swaps"]
    assert case["requirements"] == ["R14"], "no guest says which requirements there are"
    shown = rerun.line(rerun.of_run(saved.host), case)
    assert shown == f"msrward lab stress {where}"


def test_the_machines_that_lack_something_say_so_to_the_command(guest):
    order = Sampling(Kernel("k", "6", None), "svm-nrips", "fuzz", (), 1, 9.0)
    assert any(word.startswith("MSRWARD_LACKS=single_step=") for word in order.argv)
    order = Sampling(Kernel("k", "6", None), "svm", "fuzz", (), 1, 9.0)
    assert any(word.startswith("MSRWARD_LACKS=upper_rcx=") for word in order.argv)


def test_a_finding_is_what_our_model_says_and_is_saved_as_a_case(guest, tmp_path, capsys):
    guest.lines, guest.status = lines(RUN, FOUND, ended(FOUND)), 1
    assert lab("fuzz", "--examples", "20", "--seed", "7", "-o", str(tmp_path / "o")) == 1
    said = capsys.readouterr().out
    assert "seen:     gp" in said and "rm -rf" not in said
    assert f"rerun:    {AGAIN} --seed 7 --examples 20\n" in said
    case = codec.load((tmp_path / "o" / "found.json").read_bytes())
    assert case.actions == SCRIPT and case.expected != (gp,)
    kept = load(tmp_path / "o").cases["fuzz.found"]
    assert kept["file"] == str(tmp_path / "o" / "found.json") and kept["seen"] == ["gp"]
    assert kept["expected"] == [repr(each) for each in case.expected]


def test_a_finding_is_saved_where_no_directory_is_named(guest, tmp_path, capsys):
    guest.lines, guest.status = lines(RUN, FOUND, ended(FOUND)), 1
    assert lab("fuzz", "--seed", "7") == 1
    (file,) = (tmp_path / "state" / "msrward" / "found").iterdir()
    assert codec.load(file.read_bytes()).actions == SCRIPT
    assert f"saved: {file}\n" in capsys.readouterr().out


def test_json_is_the_records_and_nothing_else(guest, capsys):
    guest.lines, guest.status = lines(RUN, FOUND, ended(FOUND)), 1
    assert lab("fuzz", "--json", "--seed", "7") == 1
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["type"] for each in records] == ["run", "case", "end"]
    assert records[1]["found"]["seed"] == 7 and records[0]["host"]["lab"]["vendor"] == "svm"


def test_a_guest_that_dies_is_trouble_that_tells_the_seed(guest, capsys):
    guest.lines, guest.outcome = [live("fuzzing with --seed 7")], Outcome.PANIC
    assert lab("fuzz") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "it panicked" in said and "oops" in said
    assert said.endswith("the last that it said: fuzzing with --seed 7")


def test_a_status_that_the_records_do_not_have_is_trouble(guest, capsys):
    guest.lines, guest.status = lines(RUN, PASSED, ended(PASSED)), 1
    assert lab("fuzz") == 2
    assert "ended with status 1, and its records with 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ([PASSED], "type case out of turn"),
        ([RUN, RUN], "type run out of turn"),
        ([RUN, {**FOUND, "type": "first"}], "type first out of turn"),
        ([RUN, PASSED, ended(PASSED), PASSED], "out of turn"),
        ([RUN, PASSED, PASSED], "or twice"),
        ([RUN, stressed()], "which fuzz does not"),
        ([RUN, {**PASSED, "verdict": Verdict.XFAIL}], "calls fuzz.found XFAIL"),
        ([RUN, FOUND, ended(FOUND, status=0)], "says status 0"),
        ([RUN, FOUND, ended(PASSED)], "says counts"),
        ([RUN, ended()], "interrupted"),
        ([RUN, *({**PASSED, "id": f"fuzz.{n}"} for n in range(65))], "fuzz.64, which"),
    ],
)
def test_what_cannot_be_of_such_a_run_is_damage(records, why):
    with pytest.raises(Damaged, match=why):
        feed("fuzz", *records)


def claimed(**changes):
    return {**FOUND, "found": {**FOUND["found"], **changes}}


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ({name: value for name, value in FOUND.items() if name != "found"}, "does not say what"),
        (claimed(case="{"), "is no case: not JSON"),
        (claimed(case='{"msrward": 1, "script": []}'), "without a trace"),
        (claimed(case='{"msrward": 1, "script": [{"word": "nonesuch"}]}'), "is no case"),
        (claimed(case='{"msrward": 1, "script": [{"word": "finish"}], "trace": []}'), "goes on"),
        (claimed(case='{"msrward": 1, "script": [], "trace": []}'), "what the Model predicts"),
    ],
)
def test_a_finding_that_is_none_is_damage(guest, case, why):
    with pytest.raises(Damaged, match=why):
        feed("fuzz", RUN, case, ended(case)).finding(AGAIN)
    guest.lines, guest.status = lines(RUN, case, ended(case)), 1
    assert lab("fuzz") == 2


def keeping(*scripts):
    return {**PASSED, "kept": [json.dumps(json.loads(document(each))) for each in scripts]}


def test_fuzz_starts_from_what_it_kept_and_keeps_what_is_new(guest, tmp_path, capsys):
    place = tmp_path / "state" / "msrward" / "corpus-svm"
    guest.lines = lines(RUN, case := keeping(SCRIPT, SCRIPT), ended(case))
    assert lab("fuzz", "-o", str(tmp_path / "o")) == 0
    assert (guest.files, "--corpus=/corpus" in guest.argv) == ({}, True)
    [kept] = place.iterdir()
    assert codec.load(kept.read_bytes()).actions == SCRIPT
    assert "1 scripts, 1 of them new" in capsys.readouterr().out
    assert "kept" not in load(tmp_path / "o").cases["fuzz.found"], "it is where it belongs"
    other = (rdmsr(Msr.CSTAR),)  # the same kind of trace: the guest did not know all of them
    guest.lines = lines(RUN, case := keeping(other), ended(case))
    assert lab("fuzz") == 0
    assert guest.files == {"/corpus/000.json": kept.read_bytes()}
    assert [*place.iterdir()] == [kept]
    for alone in (["--seed", "5"], ["--no-corpus"], ["--bulk"]):
        assert lab("fuzz", *alone) == 0
        assert not guest.files and "--no-corpus" in guest.argv
    assert lab("fuzz", "--seed", "5", "--corpus", str(place)) == 0
    assert guest.files and "--seed=5" in guest.argv
    assert lab("fuzz", "--bulk", "--corpus", str(place)) == 2


def test_what_is_found_from_a_corpus_says_so(guest, tmp_path, capsys):
    guest.lines, guest.status = lines(RUN, FOUND, ended(FOUND)), 1
    assert lab("fuzz", "--corpus", str(tmp_path / "c d")) == 1
    assert f"{AGAIN} --corpus '{tmp_path}/c d' --seed 7" in capsys.readouterr().out


def test_no_guest_keeps_what_fuzz_would_not_run(guest, tmp_path, capsys):
    long = (rdmsr(Msr.STAR),) * 65
    guest.lines = lines(RUN, case := keeping(long), ended(case))
    assert lab("fuzz", "--corpus", str(tmp_path / "c")) == 0
    assert not [*(tmp_path / "c").iterdir()]
    guest.lines = lines(RUN, case := {**PASSED, "kept": ["{"]}, ended(case))
    assert lab("fuzz") == 2
    assert "the guest keeps what is no script: not JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    "field", [{"seed": "7"}, {"examples": -1}, {"bulk": 1}, {"steady": None}, {"more": 1}]
)
def test_a_claim_has_the_shape_that_is_documented(field):
    with pytest.raises(Damaged, match=r"found\.\w+ is"):
        feed("fuzz", RUN, claimed(**field))


def test_a_live_line_is_plain_and_short():
    samples = Samples("fuzz")
    samples.take(live("\x1b[31mred" + "x" * 1000))
    assert samples.said.startswith(r"\x1b[31mred") and len(samples.said) < 500
    with pytest.raises(Damaged, match="line is 5"):
        samples.take('{"schema": 1, "type": "live", "line": 5}')


def test_a_parameter_that_the_module_does_not_have_is_trouble(guest, monkeypatch, capsys):
    monkeypatch.setitem(HOST, "parameters", {"kvm": {"ignore_msrs": "N"}})
    guest.lines = lines(RUN, PASSED, ended(PASSED))
    assert lab("fuzz", "--append", "kvm.nonesuch=1") == 2
    assert "no parameter kvm.nonesuch" in capsys.readouterr().err


def test_a_missing_kernel_is_one_line(monkeypatch, capsys):
    def gone(name):
        raise LabError("no such kernel")

    monkeypatch.setattr(kernels, "resolve", gone)
    with pytest.raises(Trouble):
        from vmm.cli.guarded import in_one_line

        in_one_line(lambda _: gone("x"))(None)
    assert lab("churn") == 2
    assert capsys.readouterr().err == "msrward: no such kernel\n"


def test_stress_in_a_real_guest(tmp_path, capsys):
    """A kernel of the cache on a real emulator; 2 seconds of its own clock."""
    try:
        emulators.find("qemu")
    except LabError as error:
        pytest.skip(str(error))
    if not (cached := packaged.cached()):
        pytest.skip("no kernel is in the lab's cache")
    words = ["--kernel", cached[-1].name, "--seconds", "2", "-o", str(tmp_path / "o")]
    status = main(["lab", "stress", *words])
    shown = capsys.readouterr()
    saved = load(tmp_path / "o")
    assert status == saved.end["status"], shown.err
    assert saved.host["lab"]["kernel"] == cached[-1].name
    assert saved.host["release"] == cached[-1].release and saved.cases.keys() == {"stress.swaps"}
    assert "observations/s" in shown.out and "again: msrward lab stress" in shown.out
