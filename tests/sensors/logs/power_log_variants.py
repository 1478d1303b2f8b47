"""Spellings of power logs, made up after what public tools write: what is in each, worked out by hand."""

from dataclasses import dataclass, field

DAY = "2026/06/15"


@dataclass(frozen=True)
class Variant:
    name: str  # as in docs/power_logs.md
    text: str | bytes
    joules: dict[str, float] = field(default_factory=dict)  # by card: of all readings, worked out by hand
    refused: str = ""  # words of the refusal: the cause and the fix

    @property
    def bytes(self) -> bytes:
        return self.text if isinstance(self.text, bytes) else self.text.encode()


def lines(*rows: str) -> str:
    return "\n".join(rows) + "\n"


UTF16 = lines("timestamp, power.draw [W]", f"{DAY} 10:00:00.000, 100.00 W", f"{DAY} 10:00:01.000, 200.00 W")

READ = (
    # 100 W for two seconds
    Variant(
        "nvidia-smi --query-gpu, --format=csv",
        lines(
            "timestamp, index, power.draw [W]",
            *(f"{DAY} 10:00:0{i}.000, 0, 100.00 W" for i in range(3)),
        ),
        {"gpu:0": 200.0},
    ),
    # a ramp from 100 to 200 W in one second: their mean
    Variant(
        "nvidia-smi --query-gpu, --format=csv,nounits",
        lines("timestamp, power.draw [W]", f"{DAY} 10:00:00.000, 100.00", f"{DAY} 10:00:01.000, 200.00"),
        {"gpu:0": 150.0},
    ),
    Variant(
        "nvidia-smi --query-gpu, --format=csv,noheader",
        lines(f"{DAY} 10:00:00.000, P0, 100.00 W, 40", f"{DAY} 10:00:01.000, P0, 200.00 W, 41"),
        {"gpu:0": 150.0},
    ),
    Variant(
        "the same with several cards and an index",
        lines(*(f"{DAY} 10:00:0{i}.00{g}, {g}, {(100, 30)[g]}.00 W" for i in range(3) for g in (0, 1))),
        {"gpu:0": 200.0, "gpu:1": 60.0},
    ),
    Variant(
        "nvidia-smi with uuid",
        lines(
            "timestamp, uuid, power.draw [W]",
            *(f"{DAY} 10:00:0{i}.00{g}, GPU-{g}a, {(100, 30)[g]} W" for i in range(3) for g in (0, 1)),
        ),
        {"GPU-0a": 200.0, "GPU-1a": 60.0},
    ),
    Variant(
        "nvidia-smi with pci.bus_id",
        lines(
            "timestamp, pci.bus_id, power.draw [W]",
            *(f"{DAY} 10:00:0{i}.00{g}, 00000000:{g}B:00.0, {(100, 30)[g]} W" for i in range(3) for g in (0, 1)),
        ),
        {"0b:00.0": 200.0, "1b:00.0": 60.0},
    ),
    Variant(
        "nvidia-smi without any column of the card, several cards",
        lines(
            "timestamp, power.draw [W]",
            *(f"{DAY} 10:00:0{i}.00{g}, {(100, 30, 50)[g]} W" for i in range(4) for g in range(3)),
        ),
        {"gpu:0": 300.0, "gpu:1": 90.0, "gpu:2": 150.0},
    ),
    Variant(
        "nvidia-smi with name alone, several cards of one name",
        lines(
            "timestamp, name, power.draw [W]",
            *(f"{DAY} 10:00:0{i}.00{g}, NVIDIA A40, {(100, 30)[g]} W" for i in range(4) for g in range(2)),
        ),
        {"gpu:0": 300.0, "gpu:1": 90.0},
    ),
    Variant(
        "power.draw.instant of [N/A] beside power.draw",
        lines(
            "timestamp, power.draw.instant [W], power.draw [W]",
            f"{DAY} 10:00:00.000, [N/A], 100.00 W",
            f"{DAY} 10:00:01.000, [Not Supported], 200.00 W",
            f"{DAY} 10:00:02.000, [Unknown Error], 200.00 W",
            f"{DAY} 10:00:03.000, ERR!, 200.00 W",
        ),
        {"gpu:0": 550.0},
    ),
    Variant(
        "power.limit and other powers that are not drawn",
        lines(
            "timestamp, enforced.power.limit [W], power.draw [W], power.max_limit [W], module.power.draw.average [W]",
            f"{DAY} 10:00:00.000, 400.00 W, 100.00 W, 450.00 W, 900 W",
            f"{DAY} 10:00:01.000, 400.00 W, 200.00 W, 450.00 W, 900 W",
        ),
        {"gpu:0": 150.0},
    ),
    Variant(
        "nvidia-smi dmon -o DT",
        lines(
            "#Date       Time        gpu   pwr gtemp    sm   mem",
            "#YYYYMMDD   HH:MM:SS    Idx     W     C     %     %",
            *(f" 20260615   10:00:0{i}      {g}    {(100, 30)[g]}    40     9     2" for i in range(3) for g in (0, 1)),
        ),
        {"gpu:0": 200.0, "gpu:1": 60.0},
    ),
    Variant(
        "nvidia-smi dmon -o T",
        lines(
            "#Time        gpu   pwr gtemp",
            "#HH:MM:SS    Idx     W     C",
            " 23:59:59      0   100    40",
            " 00:00:00      0   100    40",
            " 00:00:01      0     -    40",
            " 00:00:01      0   100    40",
        ),
        {"gpu:0": 200.0},
    ),
    Variant(
        "nvidia-smi -q -d POWER -l",
        "".join(
            "\n==============NVSMI LOG==============\n\n"
            f"Timestamp                                 : Mon Jun 15 10:00:0{i} 2026\n"
            "Driver Version                            : 550.54\n\nAttached GPUs                             : 1\n"
            "GPU 00000000:3B:00.0\n    GPU Power Readings\n"
            f"        Power Draw                        : {100 + 100 * i}.00 W\n"
            "        Current Power Limit               : 400.00 W\n"
            "    Module Power Readings\n        Power Draw                        : 900.00 W\n"
            "    Power Samples\n        Max                               : 300.00 W\n"
            for i in range(2)
        ),
        {"3b:00.0": 150.0},
    ),
    Variant(
        "nvidia-smi -q -x -l",
        "".join(
            '<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">\n<nvidia_smi_log>\n'
            f"\t<timestamp>Mon Jun 15 10:00:0{i} 2026</timestamp>\n"
            + "".join(
                f'\t<gpu id="00000000:{g}B:00.0">\n\t\t<product_name>NVIDIA H100</product_name>\n'
                f"\t\t<uuid>GPU-{g}a</uuid>\n\t\t<gpu_power_readings>\n\t\t\t<power_state>P0</power_state>\n"
                f"\t\t\t<power_draw>{(100, 30)[g]}.00 W</power_draw>\n\t\t</gpu_power_readings>\n"
                "\t\t<module_power_readings>\n\t\t\t<power_draw>900.00 W</power_draw>\n\t\t</module_power_readings>\n"
                "\t</gpu>\n"
                for g in (0, 1)
            )
            + "</nvidia_smi_log>\n"
            for i in range(3)
        ),
        {"GPU-0a": 200.0, "GPU-1a": 60.0},
    ),
    Variant(
        "dcgm-exporter's text with times (federation)",
        lines(
            "# HELP DCGM_FI_DEV_POWER_USAGE Power draw (in W).",
            "# TYPE DCGM_FI_DEV_POWER_USAGE gauge",
            *(
                f'DCGM_FI_DEV_POWER_USAGE{{gpu="{g}",UUID="GPU-{g}a",device="nvidia{g}",modelName="NVIDIA A100",'
                f'Hostname="n1"}} {(100, 30)[g]}.0 {1_781_517_600_000 + 1000 * i}'
                for i in range(3)
                for g in (0, 1)
            ),
        ),
        {"GPU-0a": 200.0, "GPU-1a": 60.0},
    ),
    Variant(
        "Prometheus query_range (JSON)",
        '{"status":"success","data":{"resultType":"matrix","result":[{"metric":{"__name__":"DCGM_FI_DEV_POWER_USAGE",'
        '"gpu":"3","Hostname":"n1"},"values":[[1781517600,"100"],[1781517615,"100"],[1781517630,"200"]]}]}}',
        {"gpu:3": 1500.0 + 2250.0},
    ),
    Variant(
        "Grafana CSV, one column a series",
        lines(
            '"Time","DCGM_FI_DEV_POWER_USAGE{gpu=""0"", UUID=""GPU-0a""}",'
            '"DCGM_FI_DEV_POWER_USAGE{gpu=""1"", UUID=""GPU-1a""}"',
            *(f'"2026-06-15 10:00:{15 * i:02}",100,30' for i in range(3)),
        ),
        {"GPU-0a": 3000.0, "GPU-1a": 900.0},
    ),
    Variant(
        "Grafana CSV with legends and units in cells",
        lines("sep=,", "Time,GPU 0,GPU 1", *(f"{1_781_517_600_000 + 15_000 * i},100 W,0.03 kW" for i in range(3))),
        {"gpu:0": 3000.0, "gpu:1": 900.0},
    ),
    Variant(
        "Grafana CSV, series as rows",
        lines(
            '"Series";"Time";"Value"',
            *(f'"DCGM_FI_DEV_POWER_USAGE{{gpu=""0""}}";2026-06-15T10:00:{15 * i:02}+02:00;100' for i in range(3)),
        ),
        {"gpu:0": 3000.0},
    ),
    Variant(
        "DCGM samples as CSV: metric, labels, value",
        lines(
            "timestamp,metric,gpu,hostname,value",
            *(f"{1_781_517_600 + i},DCGM_FI_DEV_POWER_USAGE,{g},n1,{(100, 30)[g]}" for i in range(3) for g in (0, 1)),
            "1781517602,DCGM_FI_DEV_GPU_TEMP,0,n1,40",
        ),
        {"gpu:0": 200.0, "gpu:1": 60.0},
    ),
    Variant(
        "DCGM energy counter as CSV",
        lines(
            "timestamp,gpu,DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
            "1781517600,0,5000",
            "1781517601,0,105000",
            "1781517602,0,205000",
        ),
        {"gpu:0": 200.0},
    ),
    Variant(
        "amd-smi monitor --csv --watch",
        lines(
            "'CTRL' + 'C' to stop watching output:",
            "timestamp,gpu,power_usage,hotspot_temperature",
            *(f"{1_781_517_600 + i},{g},{(100, 30)[g]},40" for i in range(2) for g in (0, 1)),
            "timestamp,gpu,power_usage,hotspot_temperature",
            *(f"1781517602,{g},{(100, 30)[g]},40" for g in (0, 1)),
        ),
        {"gpu:0": 200.0, "gpu:1": 60.0},
    ),
    Variant(
        "amd-smi metric --csv",
        lines(
            "timestamp,gpu,socket_power,gfx_voltage",
            "1781517600,0,100 W,800 mV",
            "1781517601,0,N/A,800 mV",
            "1781517602,0,100 W,800 mV",
        ),
        {"gpu:0": 200.0},
    ),
    Variant(
        "rocm-smi --showpower --csv with a time in front",
        lines(
            "timestamp,device,Average Graphics Package Power (W)",
            *(f"2026-06-15 10:00:0{i},card{g},{(100, 30)[g]}.0" for i in range(3) for g in (0, 1)),
        ),
        {"gpu:0": 200.0, "gpu:1": 60.0},
    ),
    Variant(
        "xpu-smi dump",
        lines(
            "Timestamp, DeviceId, GPU Power (W), GPU Frequency (MHz)",
            *(f"10:00:0{i}.000,    {g}, {(100, 30)[g]}.00, 400" for i in range(3) for g in (0, 1)),
        ),
        {"gpu:0": 200.0, "gpu:1": 60.0},
    ),
    Variant(
        "GPU-Z and HWiNFO sensor logs",
        lines(
            "Date,Time,GPU Temperature [°C],GPU Power [W],CPU Package Power [W]",
            "15.6.2026,10:00:00.000,40,100.0,70.0",
            "15.6.2026,10:00:01.000,40,200.0,70.0",
        ).encode("latin-1"),
        {"gpu:0": 150.0},
    ),
    Variant(
        "hostname and index of several nodes (Slurm, Kubernetes)",
        lines(
            "hostname,timestamp,index,power.draw [W]",
            *(f"n{n},{DAY} 10:00:0{i}.000,0,{(100, 30)[n]} W" for n in (0, 1) for i in range(3)),
        ),
        {"n0": 200.0, "n1": 60.0},
    ),
    Variant(
        "one column a card",
        lines("t_unix_s,gpu0_power_w,gpu1_power_w", *(f"{1_781_517_600 + i},100,30" for i in range(3))),
        {"gpu:0": 200.0, "gpu:1": 60.0},
    ),
    Variant(
        "mW in the header",
        lines("t_ms,power (mW)", "1781517600000,100000", "1781517601000,200000"),
        {"gpu:0": 150.0},
    ),
    Variant(
        "mW and kW in the cells",
        lines("timestamp,power", f"{DAY} 10:00:00.000,100000 mW", f"{DAY} 10:00:01.000,0.2 kW"),
        {"gpu:0": 150.0},
    ),
    Variant(
        "decimal commas between semicolons",
        lines("timestamp;power_w", "15.06.2026 10:00:00,5;100,5", "15.06.2026 10:00:01,5;200,5"),
        {"gpu:0": 150.5},
    ),
    Variant(
        "decimal commas between tabs",
        lines("Zeit ignored\ttime\tpower [W]", "x\t1781517600,0\t1.000,5", "x\t1781517601,0\t1.000,5"),
        {"gpu:0": 1000.5},
    ),
    Variant(
        "decimal commas behind comma and blank",
        lines(
            "timestamp, power.draw [W], temperature.gpu",
            f"{DAY} 10:00:00.000, 100,50 W, 40",
            f"{DAY} 10:00:01.000, 200,50 W, 40",
        ),
        {"gpu:0": 150.5},
    ),
    Variant(
        "UTF-16 with a byte order mark (PowerShell)", UTF16.replace("\n", "\r\n").encode("utf-16"), {"gpu:0": 150.0}
    ),
    Variant("UTF-16 without one", UTF16.encode("utf-16-le"), {"gpu:0": 150.0}),
    Variant(
        "byte order mark, CRLF, comments, NUL bytes, a repeated header, and a cut last line",
        b"\xef\xbb\xbf# made by hand\r\ntimestamp, power.draw [W]\r\n2026/06/15 10:00:00.000, 100.00 W\r\n# note\r\n"
        b"\0\0\0\0timestamp, power.draw [W]\r\n2026/06/15 10:00:01.000, 200.00 W\r\nFailed to initialize NVML\r\n"
        b"2026/06/15 10:00:02.000, 20",
        {"gpu:0": 150.0},
    ),
)

REFUSED = (
    Variant(
        "nvidia-smi's screen",
        "+-----+\n| NVIDIA-SMI 550.54   Driver Version: 550.54 |\n+-----+\n",
        refused="screen of nvidia-smi.*--query-gpu",
    ),
    Variant(
        "nvidia-smi pmon",
        "# gpu        pid  type    sm   mem\n    0      12345     C    90    40\n",
        refused="pmon.*no power.*--query-gpu",
    ),
    Variant(
        "nvidia-smi dmon without -o",
        "# gpu   pwr gtemp\n# Idx     W     C\n    0   100    40\n",
        refused="dmon without times: add -o DT",
    ),
    Variant(
        "nvidia-smi --query-gpu without timestamp",
        "index, power.draw [W]\n0, 100.00 W\n0, 100.00 W\n",
        refused="no column of time",
    ),
    Variant(
        "nvidia-smi --format=csv,noheader,nounits",
        f"{DAY} 10:00:00.000, 0, 100.00\n{DAY} 10:00:01.000, 0, 100.00\n",
        refused="no header line.*put a header on top",
    ),
    Variant(
        "nvidia-smi -q once",
        "==============NVSMI LOG==============\nTimestamp : Mon Jun 15 10:00:00 2026\n"
        "GPU 00000000:3B:00.0\n    Power Readings\n        Power Draw : 100.00 W\n",
        refused="fewer than two readings",
    ),
    Variant(
        "dcgmi dmon -e 155,156",
        "#Entity   POWER    TOTEC\nID        W        mJ\nGPU 0     100.0    5000\n",
        refused="dcgmi dmon.*no times",
    ),
    Variant(
        "dcgm-exporter's page, scraped once",
        'DCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="GPU-0a"} 100.0\n',
        refused="without times.*query_range",
    ),
    Variant(
        "rocm-smi's screen",
        "======= ROCm System Management Interface =======\n"
        "GPU[0]          : Average Graphics Package Power (W): 35.0\n",
        refused="rocm-smi.*amd-smi",
    ),
    Variant(
        "rocm-smi --showpower --csv",
        "device,Average Graphics Package Power (W)\ncard0,35.0\ncard1,35.0\n",
        refused="no column of time",
    ),
    Variant(
        "turbostat",
        "Core\tCPU\tBusy%\tBzy_MHz\tPkgWatt\tRAMWatt\n-\t-\t9\t2000\t70.1\t3.0\n",
        refused="turbostat.*CPU.*--query-gpu",
    ),
    Variant(
        "powerstat",
        "  Time    User  Nice   Sys  Idle    IO  Run Ctxt/s  IRQ/s Fork Exec Exit  Watts\n"
        "10:00:00   1.0   0.0   0.5  98.5   0.0    1    500    300    0    0    0  15.20\n",
        refused="powerstat.*whole machine",
    ),
    Variant(
        "codecarbon's emissions.csv",
        "timestamp,project_name,run_id,duration,emissions,emissions_rate,cpu_power,gpu_power\n"
        "2026-06-15T10:00:00,p,x,10,0.1,0.01,40,100\n",
        refused="codecarbon.*no readings",
    ),
    Variant("Slurm's sacct", "JobID|Elapsed|ConsumedEnergyRaw\n1|00:10:00|12345\n", refused="Slurm.*one total a job"),
    Variant("ipmitool", "    Instantaneous power reading:                   220 Watts\n", refused="ipmitool.*node"),
    Variant("perf stat -I", "1.000,70.1,Joules,power/energy-pkg/,100,100.00,,\n", refused="perf stat.*CPU"),
    Variant(
        "a power that no card draws",
        lines("timestamp,power", f"{DAY} 10:00:00.000,200000", f"{DAY} 10:00:01.000,200001"),
        refused=r"line 2: '200000' in 'power' is 200000 W.*unit",
    ),
    Variant(
        "a negative power",
        lines("timestamp,power [W]", f"{DAY} 10:00:00.000,100", f"{DAY} 10:00:01.000,-5"),
        refused=r"line 3: '-5' in 'power \[W\]' is -5 W",
    ),
    Variant(
        "decimal commas between commas",
        lines("timestamp,power_w", f"{DAY} 10:00:00.000,100,5", f"{DAY} 10:00:01.000,200,5"),
        refused="line 2: more cells than columns: .*decimal commas",
    ),
    Variant(
        "thousands or decimals",
        lines("timestamp;power_w", f"{DAY} 10:00:00.000;1,234", f"{DAY} 10:00:01.000;1,235"),
        refused=r"line 2: '1,234' in 'power_w' may be thousands or decimals",
    ),
    Variant(
        "day and month that may be swapped",
        lines("time;power_w", "05/06/2026 10:00:00;100", "05/06/2026 10:00:01;100"),
        refused="05/06/2026 may be day and month",
    ),
    Variant(
        "times that are none",
        lines("timestamp,power_w", "yesterday,100", "today,100"),
        refused="no time can be read: line 2 has 'yesterday'.*write times as",
    ),
    Variant("columns without a unit", lines("Time,GPU 0", f"{DAY} 10:00:00.000,100"), refused="names no unit.*\\[W\\]"),
    Variant(
        "two machines in one file without hostname",
        lines(
            "timestamp,index,power_w", *(f"{DAY} 10:00:{i:02}.000,0,{p + i % 3}" for p in (100, 30) for i in range(20))
        ),
        refused="two series of readings for one time.*hostname",
    ),
    Variant("a picture", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(1, 32)) * 4, refused="is not text"),
)
