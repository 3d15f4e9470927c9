"""Joules from made-up folders of the system: RAPL's counters, a Jetson's sensors, and neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_client.energy import InaMeter, NotMeasurable, RaplMeter, open_meter


def written(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")
    return folder


@pytest.fixture
def packages(tmp_path: Path) -> list[Path]:
    """Two packages, a part of one, and the whole platform, which would be counted twice."""
    zones = tmp_path / "class/powercap"
    written(zones / "intel-rapl:0:0", name="core", energy_uj=500, max_energy_range_uj=999_999)
    written(zones / "intel-rapl:2", name="psys", energy_uj=500, max_energy_range_uj=999_999)
    return [
        written(zones / f"intel-rapl:{n}", name=f"package-{n}", energy_uj=100_000, max_energy_range_uj=999_999)
        for n in (0, 1)
    ]


def test_packages_are_summed_and_counters_may_wrap(tmp_path: Path, packages: list[Path]) -> None:
    meter = open_meter(tmp_path)
    assert isinstance(meter, RaplMeter) and meter.joules() == 0
    written(packages[0], energy_uj=600_000)
    written(packages[1], energy_uj=200_000)
    assert meter.joules() == pytest.approx(0.6)
    written(packages[0], energy_uj=50_000)  # 400 000 to the end, and 50 000
    assert meter.joules() == pytest.approx(0.6 + 0.45)
    meter.close()


def test_a_counter_for_root_alone_is_said_to_be_one(
    tmp_path: Path, packages: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_text

    def refuse(path: Path, encoding: str | None = None) -> str:  # the tests may run as root, who may read everything
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, encoding=encoding)

    monkeypatch.setattr(Path, "read_text", refuse)
    found = open_meter(tmp_path)
    assert isinstance(found, NotMeasurable)
    assert str(found).startswith("not measurable here (") and "energy_uj may not be read: run as root" in str(found)


def test_a_jetsons_input_is_measured_and_its_parts_are_not_added(tmp_path: Path) -> None:
    sensor = tmp_path / "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    written(sensor, in1_label="VDD_IN", in1_input=5000, curr1_input=2000)
    written(sensor, in2_label="VDD_CPU_GPU_CV", in2_input=5000, curr2_input=900)
    written(sensor, in3_label="NC")  # not connected
    meter = open_meter(tmp_path)
    try:
        assert isinstance(meter, InaMeter) and meter._read() == pytest.approx(10.0)
    finally:
        assert isinstance(meter, InaMeter)
        meter.close()


def test_without_a_rail_for_the_input_all_rails_are_added(tmp_path: Path) -> None:
    sensor = tmp_path / "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    written(sensor, in1_label="VDD_GPU_SOC", in1_input=5000, curr1_input=1000)
    written(sensor, in2_label="VDD_CPU_CV", in2_input=5000, curr2_input=400)
    meter = open_meter(tmp_path)
    assert isinstance(meter, InaMeter) and meter._read() == pytest.approx(7.0)
    meter.close()


def test_an_agx_orins_input_is_the_sum_of_three_rails(tmp_path: Path) -> None:
    drivers = tmp_path / "bus/i2c/drivers/ina3221"
    sensor = written(drivers / "1-0040/hwmon/hwmon3", in3_label="VIN_SYS_5V0", in3_input=5000, curr3_input=600)
    assert "VIN_SYS_5V0 alone" in str(open_meter(tmp_path)), "beside it lie the rails of GPU and CPU"
    written(sensor, in1_label="VDD_GPU_SOC", in1_input=19_000, curr1_input=200)
    written(sensor, in2_label="VDD_CPU_CV", in2_input=19_000, curr2_input=100)
    other = drivers / "1-0041/hwmon/hwmon4"
    written(other, in2_label="VDDQ_VDD2_1V8AO", in2_input=5000, curr2_input=100)  # fed by VIN_SYS_5V0
    meter = open_meter(tmp_path)
    assert isinstance(meter, InaMeter) and meter._read() == pytest.approx(3.0 + 3.8 + 1.9)
    meter.close()


def test_sensors_of_older_jetsons_are_found(tmp_path: Path) -> None:
    sensor = tmp_path / "bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    written(sensor, rail_name_0="POM_5V_IN", in_power0_input=4200, rail_name_1="POM_5V_GPU", in_power1_input=800)
    meter = open_meter(tmp_path)
    assert isinstance(meter, InaMeter) and meter._read() == pytest.approx(4.2)
    meter.close()


def test_watts_become_joules_between_readings() -> None:
    now, watts = 0.0, 4.0
    meter = InaMeter([lambda: watts], sample_s=3600, clock=lambda: now)
    now = 2.0
    assert meter.joules() == pytest.approx(8.0)
    now, watts = 3.0, 8.0
    assert meter.joules() == pytest.approx(8.0 + 6.0), "the mean of two readings"
    meter.close()


def test_sensors_that_say_nonsense_and_machines_without_any_are_not_measurable(tmp_path: Path) -> None:
    assert "neither RAPL" in str(open_meter(tmp_path))
    written(tmp_path / "class/powercap/intel-rapl:0", name="package-0", energy_uj="?", max_energy_range_uj=9)
    assert "the sensor cannot be read" in str(open_meter(tmp_path))
