"""What ranks leave in a folder: read back as it was, and whatever is broken in it is said and does no harm."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchwatt as tw
from tests.support.ranks import lost, record
from torchwatt.core.errors import BundleError, ConfigError
from torchwatt.distributed import job_folder, job_store
from torchwatt.distributed.job_merge import merge_job
from torchwatt.distributed.rank_facts_file import decode_facts, encode_facts
from torchwatt.distributed.rank_records import merge_records


def left(folder, records):
    for one in records:
        job_folder.begin_rank(folder, replace(one.facts, ended=False))
        if one.report is not None:
            job_folder.end_rank(folder, one.facts, one.report)
    return folder


@pytest.fixture
def folder(tmp_path):
    return left(tmp_path / "job", [record(rank, 3) for rank in range(3)])


def test_a_folder_gives_what_the_records_gave(folder):
    direct = merge_job(merge_records([record(rank, 3) for rank in range(3)]))
    read = tw.merge(folder).report
    assert (read.run_id, read.energy_j, read.status) == (direct.run_id, direct.energy_j, "complete")
    assert [p.energy_j for p in read.ranks] == pytest.approx([p.energy_j for p in direct.ranks], rel=1e-12)
    assert read.start_ns == direct.start_ns
    assert tw.merge(folder.parent).report.run_id == read.run_id  # the folder of one job, or the one around it


def test_facts_are_read_back_as_they_were():
    for facts in (record(4, 8, offset_ns=12345).facts, lost(1, 3).facts):
        assert decode_facts(encode_facts(facts), "x") == facts


def test_a_rank_that_left_no_bundle_is_missing(tmp_path):
    report = tw.merge(left(tmp_path / "job", [record(0, 2), lost(1, 2)])).report
    assert report.status == "partial"
    assert "rank 1 missing (left no bundle and no journal" in report.exit_reason


def test_a_torn_bundle_is_not_used(folder):
    path = folder / "rank-00001" / "layer.csv"
    path.write_bytes(path.read_bytes()[:-20])
    report = tw.merge(folder).report
    assert (report.status, report.ranks[1].status) == ("partial", "missing")
    assert "layer.csv differs from its manifest" in report.exit_reason
    assert report.ranks[0].status == "complete"


def test_facts_that_cannot_be_read_lose_that_rank_alone(folder):
    (folder / "rank-00002.json").write_text("{")
    report = tw.merge(folder).report
    assert [part.status for part in report.ranks] == ["complete", "complete", "missing"]
    assert "rank 2 missing (left facts that cannot be read" in report.exit_reason


def test_the_same_rank_under_two_names_is_refused(folder):
    (folder / "rank-00007.json").write_bytes((folder / "rank-00001.json").read_bytes())
    with pytest.raises(BundleError, match="rank 1 occurs twice"):
        tw.merge(folder)


def test_ranks_of_two_jobs_in_one_folder_are_refused(folder):
    other = record(2, 3, job="other")
    (folder / "rank-00002.json").write_bytes(encode_facts(other.facts))
    with pytest.raises(BundleError, match="ranks of two jobs"):
        tw.merge(folder)


def test_the_bundle_of_another_run_is_not_the_ranks(folder):
    facts = record(1, 3).facts
    (folder / "rank-00001.json").write_bytes(encode_facts(replace(facts, run_id="another")))
    assert "left the bundle of another run" in tw.merge(folder).report.exit_reason


def test_a_job_is_kept_once(folder):
    with pytest.raises(ConfigError, match="already has a rank 0"):
        job_folder.begin_rank(folder, record(0, 3).facts)


@pytest.mark.parametrize("kind", ["none", "empty", "two"])
def test_no_job_and_two_jobs_are_said(tmp_path, kind):
    if kind == "two":
        left(tmp_path / "a", [record(0, 1, job="a")])
        left(tmp_path / "b", [record(0, 1, job="b")])
    with pytest.raises(
        BundleError, match={"none": "is not a folder", "empty": "contains no job", "two": "2 jobs: name one"}[kind]
    ):
        tw.merge(tmp_path / "nowhere" if kind == "none" else tmp_path)


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "x" * 10 + "\x00"])
def test_a_jobs_name_never_leaves_its_folder(tmp_path, name):
    assert job_folder.job_folder_path(tmp_path, name).parent == tmp_path


@given(st.binary(max_size=300) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=8), x, max_size=4), max_leaves=12,
).map(lambda x: json.dumps(x).encode()))  # fmt: skip
def test_any_bytes_for_facts_are_a_clear_error(content):
    with pytest.raises(BundleError):
        decode_facts(content, "rank-00000.json")


@given(st.data())
def test_any_value_in_a_fact_is_taken_or_refused_clearly(data):
    found = json.loads(encode_facts(record(1, 3).facts))
    key = data.draw(st.sampled_from(sorted(found)))
    found[key] = data.draw(st.none() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({}))
    said = ""
    try:
        decode_facts(json.dumps(found).encode(), "x")
    except BundleError as error:
        said = str(error)
    assert not said or said.startswith("x: ")


class Box(dict):
    def set(self, key, value):
        self[key] = value

    def get(self, key, timeout_s=0.0, every_s=0.0):
        return super().get(key)

    def drop(self, key):
        self.pop(key, None)

    def add(self, key):
        raise NotImplementedError


def test_a_parcel_arrives_whole_and_writes_only_its_ranks_files(folder, tmp_path):
    box = Box()
    job_store.send_bundle(box, "k", job_store.pack_bundle(folder, ["rank-00001.json", "rank-00001"]))
    content = job_store.receive_bundle(box, "k", 0.0)
    (tmp_path / "to").mkdir()
    job_store.unpack_bundle(content, tmp_path / "to", "rank-00001")
    assert job_folder.read_rank(tmp_path / "to" / "rank-00001.json").report is not None
    with pytest.raises(BundleError, match="contains"):
        job_store.unpack_bundle(content, tmp_path / "to", "rank-00002")
    assert not (tmp_path / "to" / "rank-00002").exists()


def test_a_parcel_that_was_changed_on_the_way_is_refused(folder):
    box = Box()
    job_store.send_bundle(box, "k", job_store.pack_bundle(folder, ["rank-00001.json"]))
    box["k/0"] = box["k/0"][:-1] + b"x"
    with pytest.raises(BundleError, match="checksum is wrong"):
        job_store.receive_bundle(box, "k", 0.0)
    assert job_store.receive_bundle(box, "nothing", 0.0) is None
