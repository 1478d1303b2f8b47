/* A libnvidia-ml.so.1 that measures imaginary GPUs, for tests of programs that read NVML.
 *
 * The file named by NVML_SIMULATOR_SCENARIO says which GPUs there are, what they truly draw, how their sensors sample
 * that, and what goes wrong when. README.md has its statements, `scenario.py` writes it. It is read when the first
 * reference on the library is taken (nvmlInit), and again after all references were given back.
 *
 * scenario.c reads the file, sensors.c knows true power and what sensors make of it, nvml.c has faults and what is
 * exported. All of them see the tables below, which do not change while a reference is held.
 *
 * Times are nanoseconds since the scenario's origin (`t_ns`), or seconds where a scenario gives them (`_s`).
 */
#ifndef SIMULATOR_H
#define SIMULATOR_H
#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#define COUNT_OF(array) ((int)(sizeof(array) / sizeof((array)[0])))
#define NS 1e9

/* nvmlReturn_t, as far as the simulator gives such answers of its own. A fault may give any other number. */
enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
       UNKNOWN = 999 };
/* nvmlValueType_t, NVML_FI_DEV_*, NVML_POWER_SCOPE_*, nvmlSamplingType_t. */
enum { TYPE_UINT = 1, TYPE_U64 = 3, FIELD_ENERGY = 83, FIELD_POWER_AVERAGE = 185, FIELD_POWER_INSTANT = 186,
       SCOPE_GPU = 0, SCOPE_MODULE = 1, SAMPLES_POWER = 0, SAMPLES_MODULE_POWER = 7 };

enum { MOST_DEVICES = 64, MOST_SLICES = 7, MOST_ITEMS = 256, MOST_WORDS = 32, MOST_LOGGED = 1 << 16 };

typedef struct {
    int64_t origin_ns;         /* what the clock says at t = 0 */
    const char *clock, *driver; /* clock: a file with an int64 of nanoseconds instead of CLOCK_REALTIME */
    int64_t call_delay_us;
} Machine;

typedef struct {
    const char *name, *uuid, *counter, *stamp;
    int64_t memory, used_memory, limit_mw, default_limit_mw, temperature, clock_mhz, throttle, utilization, mig, module;
    double update_ms, instant_ms, average_ms, noise_w; /* power: how often published, means of which windows */
    double ring_update_ms, ring_window_ms, counter_update_ms, counter_phase_ms, counter_gain;
    int64_t seed, ring_length, counter_start_mj, counter_wrap_mj;
} Device;

/* True power of a device from `at_s` to its next piece: points "offset_s:watts,..." in steps or in ramps, or a log: a
 * file that a test appends {int64 unix ns, double watts} to while it runs. */
typedef struct {
    int64_t device, ramp;
    double at_s, repeat_s;
    const char *points, *log;
    double *offset_s, *watts, *joules; /* joules: from the piece's beginning to each point */
    int count, log_fd;
} Piece;

typedef struct { double extra_w; } Module; /* what a superchip draws beside its GPUs */
typedef struct { int64_t device; const char *sensor; double from_s, until_s; } Hold; /* goes on to say what it said */
typedef struct { int64_t device; double from_s, until_s, watts; } Force;            /* power sensors say this */
typedef struct { int64_t device; double at_s; const char *set_mj, *add_mj; } Jump;  /* of the energy counter */
typedef struct { int64_t device, memory; const char *pid, *kind; } Process;         /* kind: C, G or M */
typedef struct {
    const char *call; /* names of functions or "field:186", with wildcards, separated by commas */
    int64_t device, code, count, hang_ms, fired;
    double from_s, until_s;
} Fault;

/* A handle is the address of one of these. Slices are the MIG devices of a GPU; -1 is the GPU itself. */
typedef struct { int device, slice; } Handle;

extern Machine machine;
extern Module modules[MOST_ITEMS];
extern Device devices[MOST_DEVICES];
extern Piece pieces[MOST_ITEMS];
extern Hold holds[MOST_ITEMS];
extern Force forces[MOST_ITEMS];
extern Jump jumps[MOST_ITEMS];
extern Process processes[MOST_ITEMS];
extern Fault faults[MOST_ITEMS];
extern int machine_count, module_count, device_count, piece_count, hold_count, force_count, jump_count, process_count,
    fault_count;

extern Handle handles[MOST_DEVICES][1 + MOST_SLICES];

extern pthread_mutex_t lock;
extern int references;
extern volatile int64_t *clock_file;

/* Read the scenario into the tables; return an nvmlReturn_t. */
int load_scenario(void);
/* Return the time since the origin. */
int64_t now_ns(void);
/* Return the last instant at which something that is published every `period_ms` was published. */
int64_t published_ns(int64_t t_ns, double period_ms, double phase_ms);
/* Return the power that was published at an instant, in mW as NVML gives it: the mean of the window before. */
unsigned reading_mw(const Device *device, int scope, int64_t t_ns, double window_ms);
/* Give the energy counter as of its last publication; return an nvmlReturn_t. */
int counter_mj(const Device *device, unsigned long long *energy_mj);

#endif
