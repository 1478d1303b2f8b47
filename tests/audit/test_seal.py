"""Statement, chain, signature, and that a bundle is made once."""

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.support.bundles import rich_report
from tests.support.reports import sample_report
from torchwatt.audit import Seal, verify, write_bundle
from torchwatt.audit.seal import GIT_ATTRIBUTES, SIGNATURE, STATEMENT, read_chain
from torchwatt.audit.verification.seal_checks import fingerprints
from torchwatt.core.errors import BundleError


def runs(folder, n):
    chain = folder / "chain.jsonl"
    return chain, [
        write_bundle(sample_report(run_id=f"run-{i}"), folder / f"run{i}", seal=Seal(chain=chain)) for i in range(n)
    ]


def lines(chain):
    return chain.read_text().splitlines(keepends=True)


def chain_findings(bundle, chain, **more):
    return [(f.row, f.column) for f in verify(bundle, chain=chain, **more).findings if f.code == "CHAIN"]


# Statement


def test_the_statement_is_about_every_file_and_about_the_manifest(tmp_path):
    bundle = write_bundle(rich_report(), tmp_path / "audit")
    told = json.loads((bundle / STATEMENT).read_text())
    assert told["_type"] == "https://in-toto.io/Statement/v1"
    names = {subject["name"] for subject in told["subject"]}
    assert names == {path.name for path in bundle.iterdir()} - {STATEMENT, GIT_ATTRIBUTES}
    for subject in told["subject"]:
        said = subprocess.run(["sha256sum", bundle / subject["name"]], capture_output=True, text=True, check=True)
        assert said.stdout.split()[0] == subject["digest"]["sha256"]
    assert told["predicate"]["chain_sha256"] is None


# Chain


def test_a_chain_holds_and_is_asked_for(tmp_path):
    chain, bundles = runs(tmp_path, 3)
    for bundle in bundles:
        assert verify(bundle, chain=chain, runs=tmp_path).ok
        assert "give --chain" in " ".join(verify(bundle).notes)
    assert [link.bundle for link in read_chain(chain)] == ["run0", "run1", "run2"]


def test_a_removed_run_shows(tmp_path):
    chain, bundles = runs(tmp_path, 3)
    shutil.rmtree(bundles[1])
    assert chain_findings(bundles[2], chain) == []  # its line is still there
    assert chain_findings(bundles[2], chain, runs=tmp_path) == [(2, "bundle")]
    kept = lines(chain)
    chain.write_text(kept[0] + kept[2])
    assert chain_findings(bundles[2], chain) == [(2, "index"), (2, "prev_chain_sha256")]


def test_a_reordered_chain_shows(tmp_path):
    chain, bundles = runs(tmp_path, 3)
    kept = lines(chain)
    chain.write_text(kept[1] + kept[0] + kept[2])
    found = chain_findings(bundles[2], chain)
    assert {(1, "index"), (1, "prev_chain_sha256"), (2, "index")} <= set(found)


def test_a_changed_line_shows(tmp_path):
    chain, bundles = runs(tmp_path, 2)
    kept = lines(chain)
    line = json.loads(kept[0]) | {"manifest_sha256": "0" * 64}
    chain.write_text(json.dumps(line) + "\n" + kept[1])
    assert (1, "chain_sha256") in chain_findings(bundles[1], chain)


def test_a_chain_cut_off_before_a_run_does_not_hold_that_run(tmp_path):
    chain, bundles = runs(tmp_path, 2)
    chain.write_text(lines(chain)[0])
    assert chain_findings(bundles[1], chain) == [(None, "")]
    assert chain_findings(bundles[0], chain) == []  # what a chain cannot show: see docs/audit.md


def test_a_replaced_run_shows(tmp_path):
    chain, bundles = runs(tmp_path, 2)
    write_bundle(sample_report(run_id="run-0", name="nicer"), bundles[0], overwrite=True, seal=Seal(chain=chain))
    assert [link.bundle for link in read_chain(chain)] == ["run0", "run1", "run0"]
    assert chain_findings(bundles[0], chain, runs=tmp_path) == [(1, "bundle")]


def test_no_line_is_a_finding_with_its_number(tmp_path):
    chain, bundles = runs(tmp_path, 2)
    chain.write_text(lines(chain)[0] + '{"index": 1\n')
    (finding,) = verify(bundles[0], chain=chain).findings
    assert "line 2" in finding.reason
    with pytest.raises(BundleError, match="line 2"):
        write_bundle(sample_report(), tmp_path / "more", seal=Seal(chain=chain))
    assert not (tmp_path / "more").exists()


def test_nothing_is_built_on_a_broken_line(tmp_path):
    chain, _ = runs(tmp_path, 1)
    line = json.loads(chain.read_text()) | {"manifest_sha256": "0" * 64}
    chain.write_text(json.dumps(line) + "\n")
    with pytest.raises(BundleError, match="line 1"):
        write_bundle(sample_report(), tmp_path / "more", seal=Seal(chain=chain))


def test_runs_that_end_together_get_a_line_each(tmp_path):
    chain = tmp_path / "chain.jsonl"

    def one(i):
        return write_bundle(sample_report(run_id=f"run-{i}"), tmp_path / f"run{i}", seal=Seal(chain=chain))

    with ThreadPoolExecutor(4) as pool:
        bundles = list(pool.map(one, range(8)))
    assert len(read_chain(chain)) == 8
    assert all(verify(bundle, chain=chain, runs=tmp_path).ok for bundle in bundles)


def test_a_chain_prints_its_head_and_a_head_that_was_kept_shows_a_shortened_or_rewritten_one(tmp_path):
    chain, bundles = runs(tmp_path, 3)
    found = verify(bundles[1], chain=chain)
    head = found.sealing.head
    assert f"head of chain.jsonl, to be kept where others see it: {head}" in str(found)
    assert found.verdict == "consistent; unsigned: anyone could have made it; in chain chain.jsonl at place 2 of 3"
    write_bundle(sample_report(run_id="run-3"), tmp_path / "run3", seal=Seal(chain=chain))
    assert verify(bundles[0], chain=chain, require_chain=head).ok  # it has grown since
    assert verify(bundles[0], chain=chain, require_chain=head[:16]).ok
    chain.write_text("".join(lines(chain)[:2]))
    shortened = verify(bundles[0], chain=chain, require_chain=head)
    assert not shortened.ok
    assert shortened.consistent
    assert "was shortened or written anew" in str(shortened)
    chain.unlink()
    anew = tmp_path / "anew"
    anew.mkdir()
    new_chain, again = runs(anew, 2)
    assert verify(again[0], chain=new_chain).ok  # nothing else shows it
    assert not verify(again[0], chain=new_chain, require_chain=head).ok


@pytest.mark.parametrize("head", ["", "abc", "x" * 64])
def test_what_is_no_head_is_refused_by_name(tmp_path, head):
    chain, bundles = runs(tmp_path, 1)
    assert "hexadecimal digits" in str(verify(bundles[0], chain=chain, require_chain=head))


def test_a_head_without_a_chain_is_not_met(tmp_path):
    bundle = write_bundle(sample_report(), tmp_path / "audit")
    found = verify(bundle, require_chain="0" * 64)
    assert not found.ok
    assert "give --chain FILE" in str(found)


def test_a_run_that_the_chain_lacks_is_told(tmp_path):
    chain, bundles = runs(tmp_path, 2)
    write_bundle(sample_report(run_id="alone"), tmp_path / "alone")
    found = verify(bundles[0], chain=chain, runs=tmp_path)
    assert found.ok
    assert "chain.jsonl has no line for the run in alone: it was not written with a chain" in found.notes
    chain.write_text(lines(chain)[0])
    lacking = verify(bundles[0], chain=chain, runs=tmp_path)
    assert [(f.code, f.reason) for f in lacking.findings] == [
        ("CHAIN", "has no line for the run in run1, which says that it is in a chain")
    ]


# Signature


@pytest.fixture
def key(tmp_path):
    if shutil.which("ssh-keygen") is None:
        pytest.skip("no ssh-keygen")
    path = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "auditor", "-f", path], check=True)
    public = (tmp_path / "key.pub").read_text()
    (tmp_path / "allowed").write_text(f"auditor@example.org {public}")
    return path


def test_a_signed_bundle_says_who_signed(tmp_path, key):
    bundle = write_bundle(rich_report(), tmp_path / "audit", seal=Seal(key=key))
    found = verify(bundle, allowed_signers=tmp_path / "allowed")
    assert found.ok, found
    assert any("auditor@example.org" in note for note in found.notes)
    assert any("was not checked: give --allowed-signers" in note for note in verify(bundle).notes)


def test_a_key_that_is_required_is_met_by_its_file_or_its_fingerprint_and_by_no_other(tmp_path, key):
    bundle = write_bundle(rich_report(), tmp_path / "audit", seal=Seal(key=key))
    own = fingerprints(tmp_path / "key.pub")
    said = subprocess.run(["ssh-keygen", "-lf", tmp_path / "key.pub"], capture_output=True, text=True, check=True)
    assert own == [said.stdout.split()[1]]
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    for wanted in (own[0], str(tmp_path / "key.pub"), str(tmp_path / "allowed")):
        found = verify(bundle, require_signature=wanted)
        assert found.ok, found
        assert found.verdict == f"consistent; signed by the key {own[0]}, as required"
    for wanted in ("SHA256:" + "A" * 43, str(tmp_path / "other.pub"), str(tmp_path / "none"), str(tmp_path / "key")):
        found = verify(bundle, require_signature=wanted)
        assert not found.ok
        assert found.consistent
        assert {finding.code for finding in found.findings} == {"SIGNATURE"}
    unsigned = verify(write_bundle(rich_report(), tmp_path / "unsigned"), require_signature=own[0])
    assert [finding.reason for finding in unsigned.findings] == ["is missing; a signature was asked for"]


def test_what_no_check_can_show_is_said_and_ok_alone_never(tmp_path, key):
    plain = str(verify(write_bundle(rich_report(), tmp_path / "plain")))
    assert "no check shows: that the meter told the truth" in plain
    assert "no check shows: who made it" in plain
    assert "OK" not in plain
    sealed = Seal(key=key, chain=tmp_path / "chain.jsonl")
    found = verify(
        write_bundle(rich_report(), tmp_path / "sealed", seal=sealed), chain=sealed.chain,
        allowed_signers=tmp_path / "allowed",
    )  # fmt: skip
    assert "of auditor@example.org; in chain chain.jsonl at place 1 of 1" in found.verdict
    assert "no check shows: who made it" not in str(found)


def test_a_signature_under_another_statement_is_found(tmp_path, key):
    bundle = write_bundle(rich_report(), tmp_path / "audit", seal=Seal(key=key))
    other = write_bundle(replace(rich_report(), name="other"), tmp_path / "other", seal=Seal(key=key))
    shutil.copy(other / SIGNATURE, bundle / SIGNATURE)
    for options in ({}, {"allowed_signers": tmp_path / "allowed"}):
        (finding,) = verify(bundle, **options).findings
        assert (finding.code, finding.file) == ("SIGNATURE", SIGNATURE)


def test_a_key_that_nobody_allowed_is_found(tmp_path, key):
    bundle = write_bundle(rich_report(), tmp_path / "audit", seal=Seal(key=key))
    (tmp_path / "allowed").write_text("")
    (finding,) = verify(bundle, allowed_signers=tmp_path / "allowed").findings
    assert finding.code == "SIGNATURE"


def test_a_missing_signature_is_found_when_one_is_asked_for(tmp_path, key):
    bundle = write_bundle(rich_report(), tmp_path / "audit")
    (finding,) = verify(bundle, allowed_signers=tmp_path / "allowed").findings
    assert (finding.code, finding.reason) == ("SIGNATURE", "is missing; a signature was asked for")


def test_a_key_that_cannot_be_used_leaves_nothing_behind(tmp_path):
    with pytest.raises(BundleError, match="ssh-keygen"):
        write_bundle(rich_report(), tmp_path / "audit", seal=Seal(key=tmp_path / "none", chain=tmp_path / "chain"))
    assert {path.name for path in tmp_path.iterdir()} <= {"chain"}
    assert (tmp_path / "chain").read_bytes() == b""


# Made once


def test_only_a_bundle_is_replaced_and_only_when_told(tmp_path):
    bundle = write_bundle(rich_report(), tmp_path / "audit")
    with pytest.raises(BundleError, match="made once"):
        write_bundle(sample_report(), bundle)
    write_bundle(sample_report(), bundle, overwrite=True)
    assert verify(bundle).ok
    assert [path.name for path in tmp_path.iterdir()] == ["audit"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(BundleError, match="only a bundle can be replaced"):
        write_bundle(sample_report(), tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"


def test_a_bundle_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    bundle = write_bundle(rich_report(), tmp_path / "audit")
    before = (bundle / "run.csv").read_bytes()
    with pytest.raises(BundleError):
        write_bundle(sample_report(tracing_cost_s=float("nan")), bundle, overwrite=True)
    assert (bundle / "run.csv").read_bytes() == before
