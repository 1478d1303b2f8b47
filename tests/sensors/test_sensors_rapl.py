import os
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.powercap import INTEL_RANGE_UJ, FakePowercap
from torchwatt.core.errors import SensorError
from torchwatt.sensors.rapl import ROOT_VARIABLE, discover_rapl, powercap_root


def domains(found):
    return [str(meter.domain) for meter in found.meters]


def static_zones(root, zones):
    """Write zones that stand still: folder -> (name, microjoules)."""
    for folder, (name, energy_uj) in zones.items():
        (root / folder).mkdir(parents=True)
        (root / folder / "name").write_text(f"{name}\n")
        (root / folder / "energy_uj").write_text(f"{energy_uj}\n")
        (root / folder / "max_energy_range_uj").write_text(f"{INTEL_RANGE_UJ}\n")


def test_packages_and_their_dram_are_found_and_nothing_that_is_inside_them(tmp_path):
    zones = {
        "intel-rapl:0": ("package-0", 40.0),
        "intel-rapl:0:0": ("core", 30.0),
        "intel-rapl:0:1": ("uncore", 3.0),
        "intel-rapl:0:2": ("dram", 5.0),
        "intel-rapl:1": ("package-1", 41.0),
        "intel-rapl:1:0": ("dram", 6.0),
        "intel-rapl:2": ("psys", 120.0),
    }
    with FakePowercap(tmp_path / "p", zones):
        found = discover_rapl(tmp_path / "p")
    assert domains(found) == ["cpu:0", "cpu:1", "dram:0", "dram:1"]
    assert found.meters[0].fact("zone") == "package-0"
    assert found.meters[0].accuracy_rel is not None
    assert found.meters[2].accuracy_rel is None


def test_the_memory_mapped_copy_of_a_package_is_counted_once(tmp_path):
    static_zones(tmp_path, {"intel-rapl:0": ("package-0", 9_000_000), "intel-rapl-mmio:0": ("package-0", 7_000_000)})
    found = discover_rapl(tmp_path)
    assert [m.fact("driver") for m in found.meters] == ["intel-rapl"]


def test_mirrored_dies_are_one_and_true_dies_are_several(tmp_path):
    mirrored = {f"intel-rapl:{i}": (f"package-0-die-{i}", 9_000_000_000 + i) for i in range(4)}
    static_zones(tmp_path / "a", mirrored)
    true_dies = {f"intel-rapl:{i}": (f"package-0-die-{i}", 9_000_000_000 + i * 50_000_000) for i in range(2)}
    static_zones(tmp_path / "b", true_dies)
    assert domains(discover_rapl(tmp_path / "a")) == ["cpu:0"]
    assert domains(discover_rapl(tmp_path / "b")) == ["cpu:0", "cpu:1"]


def test_two_packages_with_equal_counters_are_still_two(tmp_path):
    static_zones(tmp_path, {f"intel-rapl:{i}": (f"package-{i}", 9_000_000_000) for i in range(2)})
    assert domains(discover_rapl(tmp_path)) == ["cpu:0", "cpu:1"]


def test_the_modulus_is_one_energy_unit_more_than_the_kernels_maximum(tmp_path):
    static_zones(tmp_path, {"intel-rapl:0": ("package-0", 9_000_000_000)})
    (meter,) = discover_rapl(tmp_path).meters
    assert meter.channels[0].modulus == INTEL_RANGE_UJ + 61
    (tmp_path / "intel-rapl:0" / "max_energy_range_uj").unlink()
    assert discover_rapl(tmp_path).meters[0].channels[0].modulus is None


def test_a_counter_is_delivered_as_it_stands_across_its_wrap(tmp_path):
    with FakePowercap(tmp_path / "p", {"intel-rapl:0": ("package-0", 1000.0)}, range_uj=2_000_000) as fake:
        (source,) = discover_rapl(tmp_path / "p").sources
        channel = source.meters[0].channels[0]
        found = []
        for _ in range(3000):
            found.append(source.read(channel))
            if any(b < a for a, b in pairwise(found)):
                break
            fake._publish()
        source.close()
    assert any(b < a for a, b in pairwise(found))
    assert all(0 <= value <= 2_000_000 for value in found)


def test_no_powercap_is_explained(tmp_path):
    (missing,) = discover_rapl(tmp_path / "absent").unavailable
    assert missing.domain == "cpu"
    assert "does not exist" in missing.reason
    assert "virtual machines" in missing.fix
    (tmp_path / "empty").mkdir()
    assert "no RAPL package" in discover_rapl(tmp_path / "empty").unavailable[0].reason


def test_the_root_is_argument_then_environment_then_kernel(monkeypatch):
    monkeypatch.setenv(ROOT_VARIABLE, "/from/environment")
    assert powercap_root("/argument") == Path("/argument")
    assert powercap_root() == Path("/from/environment")
    monkeypatch.delenv(ROOT_VARIABLE)
    assert powercap_root() == Path("/sys/class/powercap")


def test_permission_denied_names_the_command_that_helps():
    """As a user who is not root, truly: the effective user changes for the length of the look."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        root = Path(name)
        root.chmod(0o755)
        static_zones(root, {"intel-rapl:0": ("package-0", 9_000_000_000), "intel-rapl:0/intel-rapl:0:0": ("dram", 5)})
        for file in root.rglob("energy_uj"):
            file.chmod(0o000)
        root_user = os.geteuid() == 0
        if root_user:
            os.seteuid(65534)
        try:
            found = discover_rapl(root)
        finally:
            if root_user:
                os.seteuid(0)
    assert found.meters == ()
    assert [u.domain for u in found.unavailable] == ["cpu:0", "dram:0"]
    assert "Permission denied" in found.unavailable[0].reason
    assert "chmod" in found.unavailable[0].fix
    assert "CVE-2020-8694" in found.unavailable[0].fix


@pytest.mark.parametrize(("damage", "code"), [("text", "SENSOR_ERROR"), ("gone", "SENSOR_LOST")])
def test_a_counter_that_breaks_raises_and_comes_back(tmp_path, damage, code):
    static_zones(tmp_path, {"intel-rapl:0": ("package-0", 9_000_000_000)})
    (source,) = discover_rapl(tmp_path).sources
    channel, file = source.meters[0].channels[0], tmp_path / "intel-rapl:0" / "energy_uj"
    if damage == "text":
        file.write_text("nonsense\n")
    else:
        file.unlink()
    with pytest.raises(SensorError) as caught:
        source.read(channel)
    assert caught.value.code == code
    file.write_text("123\n")
    assert source.read(channel) == 123.0
    source.close()
    source.close()


def test_a_package_whose_counter_is_missing_gives_way_to_its_memory_mapped_twin(tmp_path):
    zones = {"intel-rapl:0": ("package-0", 1), "intel-rapl-mmio:0": ("package-0", 7_000_000)}
    static_zones(tmp_path, zones)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert [m.fact("driver") for m in discover_rapl(tmp_path).meters] == ["intel-rapl-mmio"]


def test_dram_below_the_memory_mapped_twin_is_found(tmp_path):
    zones = {
        "intel-rapl:0": ("package-0", 9_000_000),
        "intel-rapl-mmio:0": ("package-0", 7_000_000),
        "intel-rapl-mmio:0:0": ("dram", 2_000_000),
    }
    static_zones(tmp_path, zones)
    assert domains(discover_rapl(tmp_path)) == ["cpu:0", "dram:0"]


def test_a_name_that_is_no_text_is_no_crash(tmp_path):
    static_zones(tmp_path, {"intel-rapl:0": ("package-0", 9_000_000), "intel-rapl:1": ("x", 1)})
    (tmp_path / "intel-rapl:1" / "name").write_bytes(b"\xff\xfe\n")
    assert domains(discover_rapl(tmp_path)) == ["cpu:0"]
