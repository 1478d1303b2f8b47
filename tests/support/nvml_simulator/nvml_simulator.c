/* A libnvidia-ml.so.1 that measures imaginary GPUs, for tests of programs that read NVML.
 *
 * The file named by NVML_SIMULATOR_SCENARIO says which GPUs there are, what they truly draw, how their sensors sample
 * that, and what goes wrong when. README.md has its statements, `scenario.py` writes it. It is read when the first
 * reference on the library is taken (nvmlInit), and again after all references were given back.
 *
 * Layout: the scenario; true power and its exact integral; sensors; faults; exported functions.
 * Times are nanoseconds since the scenario's origin (`t_ns`), or seconds where a scenario gives them (`_s`).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define COUNT_OF(array) ((int)(sizeof(array) / sizeof((array)[0])))
#define NS 1e9

/* nvmlReturn_t, as far as the simulator gives such answers of its own. A fault may give any other number. */
enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
       UNKNOWN = 999 };
/* nvmlValueType_t, NVML_FI_DEV_*, NVML_POWER_SCOPE_*, nvmlSamplingType_t. */
enum { TYPE_UINT = 1, TYPE_U64 = 3, FIELD_ENERGY = 83, FIELD_POWER_AVERAGE = 185, FIELD_POWER_INSTANT = 186,
       SCOPE_GPU = 0, SCOPE_MODULE = 1, SAMPLES_POWER = 0, SAMPLES_MODULE_POWER = 7 };

/* ---- The scenario: one statement a line, `word key=value ...`. ---- */

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

static Machine machine;
static Module modules[MOST_ITEMS];
static Device devices[MOST_DEVICES];
static Piece pieces[MOST_ITEMS];
static Hold holds[MOST_ITEMS];
static Force forces[MOST_ITEMS];
static Jump jumps[MOST_ITEMS];
static Process processes[MOST_ITEMS];
static Fault faults[MOST_ITEMS];
static int machine_count, module_count, device_count, piece_count, hold_count, force_count, jump_count, process_count,
    fault_count;

/* A handle is the address of one of these. Slices are the MIG devices of a GPU; -1 is the GPU itself. */
typedef struct { int device, slice; } Handle;
static Handle handles[MOST_DEVICES][1 + MOST_SLICES];

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int references;
static volatile int64_t *clock_file;

/* The keys of the statement that is being read, and the first thing that is wrong in the scenario. */
static struct { char *key, *value; int used; } words[MOST_WORDS];
static int word_count;
static int broken;

static void complain(const char *what, const char *about)
{
    fprintf(stderr, "nvml_simulator: %s: %s\n", what, about ? about : "(nothing)");
    broken = 1;
}

static const char *text(const char *key, const char *otherwise)
{
    for (int i = 0; i < word_count; i++)
        if (!strcmp(words[i].key, key))
            return words[i].used = 1, words[i].value;
    return otherwise;
}

static double real(const char *key, double otherwise)
{
    const char *value = text(key, NULL);
    char *end = "";
    double number = value ? strtod(value, &end) : otherwise;
    if (*end)
        complain("no number", value);
    return number;
}

static int64_t whole(const char *key, int64_t otherwise)
{
    const char *value = text(key, NULL);
    char *end = "";
    int64_t number = value ? strtoll(value, &end, 0) : otherwise;
    if (*end)
        complain("no whole number", value);
    return number;
}

static void read_machine(void)
{
    machine = (Machine){ whole("origin_ns", 0), text("clock", NULL), text("driver", "580.65.06"),
                         whole("call_delay_us", 0) };
}

static void read_module(void) { modules[module_count] = (Module){ real("extra_w", 0) }; }

static void read_device(void)
{
    devices[device_count] = (Device){
        .name = text("name", "NVIDIA Simulated GPU"), .uuid = text("uuid", "GPU-0"),
        .counter = text("counter", "gpu"), .stamp = text("stamp", "query"),
        .memory = whole("memory", 0), .used_memory = whole("used_memory", 0),
        .limit_mw = whole("limit_mw", 0), .default_limit_mw = whole("default_limit_mw", 0),
        .temperature = whole("temperature", 0), .clock_mhz = whole("clock_mhz", 0),
        .throttle = whole("throttle", 0), .utilization = whole("utilization", 0),
        .mig = whole("mig", 0), .module = whole("module", -1),
        .update_ms = real("update_ms", 0), .instant_ms = real("instant_ms", 0), .average_ms = real("average_ms", 0),
        .noise_w = real("noise_w", 0), .seed = whole("seed", device_count),
        .ring_update_ms = real("ring_update_ms", 0), .ring_window_ms = real("ring_window_ms", 0),
        .ring_length = whole("ring_length", 0),
        .counter_update_ms = real("counter_update_ms", 0), .counter_phase_ms = real("counter_phase_ms", 0),
        .counter_gain = real("counter_gain", 1), .counter_start_mj = whole("counter_start_mj", 0),
        .counter_wrap_mj = whole("counter_wrap_mj", 0),
    };
}

static void read_piece(void)
{
    Piece *piece = &pieces[piece_count];
    *piece = (Piece){ .device = whole("device", 0), .ramp = whole("ramp", 0), .at_s = real("at_s", 0),
                      .repeat_s = real("repeat_s", 0), .points = text("points", ""), .log = text("log", NULL) };
    int most = piece->log ? MOST_LOGGED : (int)strlen(piece->points) / 3 + 1; /* a point is "0:1" at least */
    piece->offset_s = calloc(3 * (size_t)most, sizeof(double));
    piece->watts = piece->offset_s + most;
    piece->joules = piece->watts + most;
    if (piece->log && (piece->log_fd = open(piece->log, O_RDONLY | O_CLOEXEC)) < 0)
        complain("cannot open the power log", piece->log);
    for (const char *next = piece->points; *next; piece->count++) {
        int i = piece->count, used = 0;
        if (sscanf(next, "%lf:%lf%n", &piece->offset_s[i], &piece->watts[i], &used) != 2)
            return complain("no offset:watts", next);
        if (i > 0) {
            double mean_w = piece->ramp ? (piece->watts[i - 1] + piece->watts[i]) / 2 : piece->watts[i - 1];
            piece->joules[i] = piece->joules[i - 1] + mean_w * (piece->offset_s[i] - piece->offset_s[i - 1]);
        }
        next += used + (next[used] == ',');
    }
}

static void read_hold(void)
{
    holds[hold_count] = (Hold){ whole("device", 0), text("sensor", "power"), real("from_s", 0),
                                real("until_s", INFINITY) };
}

static void read_force(void)
{
    forces[force_count] = (Force){ whole("device", 0), real("from_s", 0), real("until_s", INFINITY), real("watts", 0) };
}

static void read_jump(void)
{
    jumps[jump_count] = (Jump){ whole("device", 0), real("at_s", 0), text("set_mj", NULL), text("add_mj", "0") };
}

static void read_process(void)
{
    processes[process_count] = (Process){ whole("device", 0), whole("memory", 0), text("pid", "self"), text("kind", "C") };
}

static void read_fault(void)
{
    faults[fault_count] = (Fault){ .call = text("call", "*"), .device = whole("device", -1), .code = whole("code", 0),
                                   .count = whole("count", 0), .hang_ms = whole("hang_ms", 0),
                                   .from_s = real("from_s", -INFINITY), .until_s = real("until_s", INFINITY) };
}

static const struct { const char *word; void (*read)(void); int *count, most; } STATEMENTS[] = {
    { "machine", read_machine, &machine_count, 1 },       { "module", read_module, &module_count, MOST_ITEMS },
    { "device", read_device, &device_count, MOST_DEVICES }, { "power", read_piece, &piece_count, MOST_ITEMS },
    { "hold", read_hold, &hold_count, MOST_ITEMS },       { "force", read_force, &force_count, MOST_ITEMS },
    { "jump", read_jump, &jump_count, MOST_ITEMS },       { "process", read_process, &process_count, MOST_ITEMS },
    { "fault", read_fault, &fault_count, MOST_ITEMS },
};

/* Replace %41 by A, in place: names have spaces, and bytes that are no text. */
static char *unescaped(char *text)
{
    char *to = text;
    for (const char *from = text; *from; from++) {
        unsigned byte = (unsigned char)*from;
        if (*from == '%' && sscanf(from + 1, "%2x", &byte) == 1)
            from += 2;
        *to++ = (char)byte;
    }
    *to = 0;
    return text;
}

static void read_statement(char *line)
{
    char *rest, *word = strtok_r(line, " ", &rest), *value;
    if (!word)
        return;
    word_count = 0;
    for (char *key; (key = strtok_r(NULL, " ", &rest)) && word_count < MOST_WORDS;) {
        if (!(value = strchr(key, '=')))
            return complain("no key=value", key);
        *value++ = 0;
        words[word_count].key = key;
        words[word_count].value = unescaped(value);
        words[word_count++].used = 0;
    }
    for (int i = 0; i < COUNT_OF(STATEMENTS); i++) {
        if (strcmp(STATEMENTS[i].word, word))
            continue;
        if (*STATEMENTS[i].count == STATEMENTS[i].most)
            return complain("too many statements", word);
        STATEMENTS[i].read();
        ++*STATEMENTS[i].count;
        for (int j = 0; j < word_count; j++)
            if (!words[j].used)
                complain("no such key", words[j].key);
        return;
    }
    complain("no such statement", word);
}

static void open_clock(void)
{
    if (clock_file)
        munmap((void *)clock_file, sizeof(int64_t));
    clock_file = NULL;
    if (!machine.clock)
        return;
    int fd = open(machine.clock, O_RDONLY | O_CLOEXEC);
    void *map = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        complain("cannot map the clock", machine.clock);
    else
        clock_file = map;
    close(fd);
}

/* Read the scenario. Its text stays allocated, and so do the points: an older call may still run. */
static int load(void)
{
    const char *path = getenv("NVML_SIMULATOR_SCENARIO");
    FILE *file = path ? fopen(path, "r") : NULL;
    char *whole_text = NULL, *rest;
    size_t size = 0;
    broken = 0;
    if (!file || getdelim(&whole_text, &size, 0, file) < 0) {
        complain("cannot read NVML_SIMULATOR_SCENARIO", path);
        return UNKNOWN;
    }
    fclose(file);
    for (int i = 0; i < piece_count; i++)
        if (pieces[i].log)
            close(pieces[i].log_fd);
    for (int i = 0; i < COUNT_OF(STATEMENTS); i++)
        *STATEMENTS[i].count = 0;
    for (char *line = strtok_r(whole_text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
        read_statement(line);
    for (int i = 0; i < MOST_DEVICES; i++)
        for (int slice = 0; slice <= MOST_SLICES; slice++)
            handles[i][slice] = (Handle){ i, slice - 1 };
    open_clock();
    return broken ? UNKNOWN : SUCCESS;
}

/* ---- True power, and its exact integral. ---- */

static int64_t clock_ns(void)
{
    if (clock_file)
        return *clock_file;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int64_t now_ns(void) { return clock_ns() - machine.origin_ns; }

/* Take what a test appended to a power log meanwhile. */
static void follow_log(Piece *piece)
{
    struct { int64_t unix_ns; double watts; } entry;
    pthread_mutex_lock(&lock);
    int i = piece->count;
    for (; i < MOST_LOGGED && pread(piece->log_fd, &entry, sizeof entry, i * sizeof entry) == sizeof entry; i++) {
        double at_s = (entry.unix_ns - machine.origin_ns) / NS;
        if (i == 0)
            piece->at_s = at_s;
        piece->offset_s[i] = at_s - piece->at_s;
        piece->watts[i] = entry.watts;
        if (i > 0)
            piece->joules[i] =
                piece->joules[i - 1] + piece->watts[i - 1] * (piece->offset_s[i] - piece->offset_s[i - 1]);
        __atomic_store_n(&piece->count, i + 1, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&lock);
}

/* Watts at an offset in a piece, and the joules from its beginning to there. */
static double inside_piece(const Piece *piece, double offset_s, double *joules)
{
    int last = __atomic_load_n(&piece->count, __ATOMIC_ACQUIRE) - 1, first = 0, i;
    while (first < last) { /* the last point at or before the offset */
        i = (first + last + 1) / 2;
        if (piece->offset_s[i] <= offset_s)
            first = i;
        else
            last = i - 1;
    }
    i = first;
    double since_s = offset_s - piece->offset_s[i], watts = piece->watts[i], mean_w = watts;
    if (piece->ramp && i + 1 < piece->count) {
        double slope = (piece->watts[i + 1] - watts) / (piece->offset_s[i + 1] - piece->offset_s[i]);
        mean_w = watts + slope * since_s / 2;
        watts += slope * since_s;
    }
    *joules = piece->joules[i] + mean_w * since_s;
    return watts;
}

static double in_piece(const Piece *piece, double offset_s, double *joules)
{
    double each_j, times = 0;
    if (piece->repeat_s > 0) {
        times = floor(offset_s / piece->repeat_s);
        inside_piece(piece, piece->repeat_s, &each_j);
        offset_s -= times * piece->repeat_s;
    }
    double watts = inside_piece(piece, offset_s, joules);
    if (times)
        *joules += times * each_j;
    return watts;
}

/* Watts of a device at an instant, and its joules since its first piece began; its first watts hold before that. */
static double device_power(int device, double t_s, double *joules)
{
    double total_j = 0, part_j, watts = 0;
    Piece *now = NULL;
    for (int i = 0; i < piece_count; i++) {
        Piece *next = &pieces[i];
        if (next->device != device)
            continue;
        if (next->log)
            follow_log(next);
        if (next->count == 0 || (now && next->at_s > t_s))
            break;
        if (now) {
            in_piece(now, next->at_s - now->at_s, &part_j);
            total_j += part_j;
        }
        now = next;
    }
    if (now && t_s < now->at_s) {
        watts = now->watts[0];
        total_j = watts * (t_s - now->at_s);
    } else if (now) {
        watts = in_piece(now, t_s - now->at_s, &part_j);
        total_j += part_j;
    }
    *joules = total_j;
    return watts;
}

/* The same of what a scope covers: the GPU, or all GPUs of its module and what is beside them there. */
static double true_power(const Device *device, int scope, double t_s, double *joules)
{
    int own = (int)(device - devices);
    if (scope == SCOPE_GPU)
        return device_power(own, t_s, joules);
    double watts = modules[device->module].extra_w, part_j;
    *joules = watts * t_s;
    for (int i = 0; i < device_count; i++) {
        if (devices[i].module == device->module) {
            watts += device_power(i, t_s, &part_j);
            *joules += part_j;
        }
    }
    return watts;
}

static double true_j(const Device *device, int scope, double t_s)
{
    double joules;
    true_power(device, scope, t_s, &joules);
    return joules;
}

/* ---- Sensors: what a device says of its power at a time. ---- */

/* The last instant at which something that is published every `period_ms` was published. */
static int64_t published_ns(int64_t t_ns, double period_ms, double phase_ms)
{
    int64_t period_ns = llround(period_ms * 1e6), phase_ns = llround(phase_ms * 1e6);
    if (period_ns <= 0)
        return t_ns;
    int64_t since_ns = (t_ns - phase_ns) % period_ns;
    return t_ns - (since_ns < 0 ? since_ns + period_ns : since_ns);
}

static int64_t held_ns(const Device *device, const char *sensor, int64_t t_ns)
{
    for (int i = 0; i < hold_count; i++) {
        const Hold *hold = &holds[i];
        if (hold->device == device - devices && !strcmp(hold->sensor, sensor) && hold->from_s * NS <= t_ns &&
            t_ns < hold->until_s * NS)
            return (int64_t)(hold->from_s * NS);
    }
    return t_ns;
}

static uint64_t scrambled(uint64_t x) /* splitmix64, by Steele, Lea and Flood */
{
    x += 0x9e3779b97f4a7c15ULL;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

/* A standard normal deviate that is the same whenever the same publication is read. */
static double deviate(const Device *device, int64_t t_ns)
{
    uint64_t a = scrambled((uint64_t)t_ns ^ scrambled((uint64_t)device->seed)), b = scrambled(a);
    double u = ((a >> 11) + 1) * 0x1p-53, v = (b >> 11) * 0x1p-53;
    return sqrt(-2 * log(u)) * cos(2 * M_PI * v);
}

/* The power that was published at an instant, in mW as NVML gives it: the mean of the window before. */
static unsigned reading_mw(const Device *device, int scope, int64_t t_ns, double window_ms)
{
    for (int i = 0; i < force_count; i++)
        if (forces[i].device == device - devices && forces[i].from_s * NS <= t_ns && t_ns < forces[i].until_s * NS)
            return (unsigned)llround(fmin(forces[i].watts * 1e3, UINT32_MAX)); /* below 0: modulo 2^32 */
    t_ns = held_ns(device, "power", t_ns);
    double t_s = t_ns / NS, window_s = window_ms / 1e3, joules, watts;
    if (window_s > 0)
        watts = (true_j(device, scope, t_s) - true_j(device, scope, t_s - window_s)) / window_s;
    else
        watts = true_power(device, scope, t_s, &joules);
    if (device->noise_w > 0)
        watts += device->noise_w * deviate(device, t_ns);
    return (unsigned)llround(fmax(watts, 0) * 1e3);
}

static unsigned power_mw(const Device *device, int scope, double window_ms)
{
    return reading_mw(device, scope, published_ns(now_ns(), device->update_ms, 0), window_ms);
}

/* The energy counter: joules since the origin, or since it was set, as of its last publication. */
static int counter_mj(const Device *device, unsigned long long *energy_mj)
{
    if (!strcmp(device->counter, "none"))
        return NOT_SUPPORTED;
    int scope = strcmp(device->counter, "module") ? SCOPE_GPU : SCOPE_MODULE;
    int64_t t_ns = held_ns(device, "counter", now_ns());
    t_ns = published_ns(t_ns, device->counter_update_ms, device->counter_phase_ms);
    uint64_t start_mj = (uint64_t)device->counter_start_mj;
    double from_s = 0;
    for (int i = 0; i < jump_count; i++) {
        const Jump *jump = &jumps[i];
        if (jump->device != device - devices || jump->at_s * NS > t_ns)
            continue;
        if (jump->set_mj) {
            start_mj = strtoull(jump->set_mj, NULL, 10);
            from_s = jump->at_s;
        } else { /* unsigned: "-5" takes 5 away, modulo 2^64 */
            start_mj += strtoull(jump->add_mj, NULL, 10);
        }
    }
    double since_j = true_j(device, scope, t_ns / NS) - true_j(device, scope, from_s);
    uint64_t value_mj = start_mj + (uint64_t)fmax(device->counter_gain * since_j * 1e3, 0);
    *energy_mj = device->counter_wrap_mj ? value_mj % (uint64_t)device->counter_wrap_mj : value_mj;
    return SUCCESS;
}

/* ---- Faults. ---- */

static void sleep_ns(int64_t ns)
{
    struct timespec left = { ns / 1000000000, ns % 1000000000 };
    while (ns > 0 && nanosleep(&left, &left) && errno == EINTR)
        ;
}

static int named(const char *patterns, const char *call)
{
    char copy[512], name[64], *rest, *version;
    snprintf(copy, sizeof copy, "%s", patterns);
    snprintf(name, sizeof name, "%s", call);
    if ((version = strstr(name, "_v")))
        *version = 0;
    for (char *one = strtok_r(copy, ",", &rest); one; one = strtok_r(NULL, ",", &rest))
        if (!fnmatch(one, name, 0))
            return 1;
    return 0;
}

/* Let happen what the scenario has for a call at this time; -1 is a call about no device. */
static int fault_of(const char *call, int device)
{
    int code = SUCCESS;
    int64_t hang_ms = 0;
    pthread_mutex_lock(&lock);
    double t_s = now_ns() / NS;
    for (int i = 0; i < fault_count && !code; i++) {
        Fault *fault = &faults[i];
        if ((fault->device >= 0 && fault->device != device) || t_s < fault->from_s || t_s >= fault->until_s ||
            (fault->count && fault->fired >= fault->count) || !named(fault->call, call))
            continue;
        fault->fired++;
        hang_ms += fault->hang_ms;
        code = (int)fault->code;
    }
    pthread_mutex_unlock(&lock);
    sleep_ns(hang_ms * 1000000);
    return code;
}

/* ---- What NVML exports. Each function begins so: is the library open, is it slow, does the call fail? ---- */

static int begin(const char *call, int device)
{
    if (!references)
        return UNINITIALIZED;
    sleep_ns(machine.call_delay_us * 1000);
    return fault_of(call, device);
}

enum { ANY, WHOLE_GPU }; /* what a function works for: a slice of a GPU has few of them */

static int begin_on(const char *call, const Handle *handle, int kind)
{
    if (!references)
        return UNINITIALIZED;
    if (handle < &handles[0][0] || handle >= &handles[device_count][0])
        return INVALID_ARGUMENT;
    return kind == WHOLE_GPU && handle->slice >= 0 ? NOT_SUPPORTED : begin(call, handle->device);
}

#define BEGIN(kind)                                \
    int code = begin_on(__func__, handle, kind);   \
    if (code)                                      \
        return code;                               \
    const Device *gpu = &devices[handle->device]

/* A function of a GPU that answers one number. */
#define NUMBER(function, type, value)              \
    EXPORT int function(Handle *handle, type *number) \
    {                                              \
        BEGIN(WHOLE_GPU);                          \
        *number = (type)(value);                   \
        (void)gpu;                                 \
        return SUCCESS;                            \
    }

static int copy_text(char *to, unsigned length, const char *from)
{
    return snprintf(to, length, "%s", from) < (int)length ? SUCCESS : INSUFFICIENT_SIZE;
}

EXPORT int nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    pthread_mutex_lock(&lock);
    int code = references ? SUCCESS : load();
    pthread_mutex_unlock(&lock);
    if (!code)
        code = fault_of("nvmlInit", -1);
    if (!code)
        __atomic_add_fetch(&references, 1, __ATOMIC_SEQ_CST);
    return code;
}

EXPORT int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

EXPORT int nvmlShutdown(void)
{
    pthread_mutex_lock(&lock);
    int code = references ? SUCCESS : UNINITIALIZED;
    references -= references > 0;
    pthread_mutex_unlock(&lock);
    return code;
}

EXPORT const char *nvmlErrorString(int code)
{
    static __thread char words_of[32];
    snprintf(words_of, sizeof words_of, "simulated error %d", code);
    return words_of;
}

EXPORT int nvmlSystemGetDriverVersion(char *version, unsigned length)
{
    int code = begin(__func__, -1);
    return code ? code : copy_text(version, length, machine.driver);
}

EXPORT int nvmlSystemGetNVMLVersion(char *version, unsigned length)
{
    int code = begin(__func__, -1);
    return code ? code : copy_text(version, length, "13.580.65.06");
}

EXPORT int nvmlDeviceGetCount_v2(unsigned *count)
{
    *count = (unsigned)device_count;
    return begin(__func__, -1);
}

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, Handle **handle)
{
    int here = index < (unsigned)device_count, code = begin(__func__, here ? (int)index : -1);
    if (!code && here)
        *handle = &handles[index][0];
    return code || here ? code : INVALID_ARGUMENT;
}

/* A slice's UUID is its GPU's, with its place for the first group of digits. */
static void uuid_of(const Handle *handle, char uuid[96])
{
    const char *own = devices[handle->device].uuid;
    if (handle->slice < 0)
        snprintf(uuid, 96, "%s", own);
    else
        snprintf(uuid, 96, "MIG-%08x%s", handle->slice, strlen(own) > 12 ? own + 12 : "");
}

EXPORT int nvmlDeviceGetHandleByUUID(const char *asked, Handle **handle)
{
    char uuid[96];
    for (int i = 0; i < device_count; i++) {
        for (int slice = 0; slice <= devices[i].mig; slice++) {
            uuid_of(&handles[i][slice], uuid);
            if (!strcmp(uuid, asked)) {
                *handle = &handles[i][slice];
                return begin(__func__, i);
            }
        }
    }
    int code = begin(__func__, -1);
    return code ? code : NOT_FOUND;
}

EXPORT int nvmlDeviceGetUUID(Handle *handle, char *answer, unsigned length)
{
    BEGIN(ANY);
    char uuid[96];
    (void)gpu;
    uuid_of(handle, uuid);
    return copy_text(answer, length, uuid);
}

EXPORT int nvmlDeviceGetName(Handle *handle, char *name, unsigned length)
{
    BEGIN(ANY);
    return copy_text(name, length, gpu->name);
}

typedef struct {
    char legacy_id[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char id[32];
} PciInfo;

EXPORT int nvmlDeviceGetPciInfo_v3(Handle *handle, PciInfo *info)
{
    BEGIN(WHOLE_GPU);
    *info = (PciInfo){ .bus = (unsigned)(gpu - devices) + 1 };
    snprintf(info->id, sizeof info->id, "00000000:%02X:00.0", info->bus);
    snprintf(info->legacy_id, sizeof info->legacy_id, "0000:%02X:00.0", info->bus);
    return SUCCESS;
}

/* GPUs of a module are beside its 72 CPUs, others beside the first 64. */
EXPORT int nvmlDeviceGetCpuAffinity(Handle *handle, unsigned length, unsigned long *mask)
{
    BEGIN(WHOLE_GPU);
    unsigned first = gpu->module < 0 ? 0 : 72 * (unsigned)gpu->module, cpus = gpu->module < 0 ? 64 : 72;
    memset(mask, 0, length * sizeof *mask);
    for (unsigned cpu = first; cpu < first + cpus && cpu < 64 * length; cpu++)
        mask[cpu / 64] |= 1UL << cpu % 64;
    return SUCCESS;
}

typedef struct { unsigned long long total, free, used; } Memory;

EXPORT int nvmlDeviceGetMemoryInfo(Handle *handle, Memory *memory)
{
    BEGIN(ANY);
    int64_t used = gpu->used_memory;
    for (int i = 0; i < process_count; i++)
        used += processes[i].device == handle->device ? processes[i].memory : 0;
    *memory = (Memory){ (uint64_t)gpu->memory, (uint64_t)(gpu->memory - used), (uint64_t)used };
    return SUCCESS;
}

NUMBER(nvmlDeviceGetIndex, unsigned, gpu - devices)
NUMBER(nvmlDeviceGetPowerUsage, unsigned, power_mw(gpu, SCOPE_GPU, gpu->average_ms))
NUMBER(nvmlDeviceGetEnforcedPowerLimit, unsigned, gpu->limit_mw)
NUMBER(nvmlDeviceGetPowerManagementLimit, unsigned, gpu->limit_mw)
NUMBER(nvmlDeviceGetPowerManagementDefaultLimit, unsigned, gpu->default_limit_mw)
NUMBER(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, gpu->throttle)
NUMBER(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, gpu->throttle)
NUMBER(nvmlDeviceGetMaxMigDeviceCount, unsigned, gpu->mig ? MOST_SLICES : 0)
NUMBER(nvmlDeviceGetComputeMode, int, 0)

EXPORT int nvmlDeviceGetTotalEnergyConsumption(Handle *handle, unsigned long long *energy_mj)
{
    BEGIN(WHOLE_GPU);
    return counter_mj(gpu, energy_mj);
}

EXPORT int nvmlDeviceGetTemperature(Handle *handle, int sensor, unsigned *celsius)
{
    BEGIN(WHOLE_GPU);
    *celsius = (unsigned)gpu->temperature;
    return sensor ? INVALID_ARGUMENT : SUCCESS;
}

EXPORT int nvmlDeviceGetClockInfo(Handle *handle, int type, unsigned *mhz)
{
    BEGIN(WHOLE_GPU);
    *mhz = (unsigned)gpu->clock_mhz;
    return type < 0 ? INVALID_ARGUMENT : SUCCESS;
}

EXPORT int nvmlDeviceGetUtilizationRates(Handle *handle, unsigned percent[2])
{
    BEGIN(WHOLE_GPU);
    percent[0] = percent[1] = (unsigned)gpu->utilization;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetMigMode(Handle *handle, unsigned *current, unsigned *pending)
{
    BEGIN(WHOLE_GPU);
    *current = *pending = gpu->mig > 0;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetMigDeviceHandleByIndex(Handle *handle, unsigned index, Handle **slice)
{
    BEGIN(WHOLE_GPU);
    *slice = handle + 1 + index;
    return index < (unsigned)gpu->mig ? SUCCESS : NOT_FOUND;
}

typedef struct { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; } ProcessInfo;

static int list_processes(const char *kind, Handle *handle, unsigned *count, ProcessInfo *infos)
{
    unsigned room = *count, found = 0;
    for (int i = 0; i < process_count; i++) {
        const Process *one = &processes[i];
        if (one->device != handle->device || strcmp(one->kind, kind))
            continue;
        unsigned pid = strcmp(one->pid, "self") ? (unsigned)atoi(one->pid) : (unsigned)getpid();
        if (found < room)
            infos[found] = (ProcessInfo){ pid, (uint64_t)one->memory, ~0U, ~0U };
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

#define PROCESSES(function, kind)                                             \
    EXPORT int function(Handle *handle, unsigned *count, ProcessInfo *infos)  \
    {                                                                         \
        BEGIN(WHOLE_GPU);                                                     \
        (void)gpu;                                                            \
        return list_processes(kind, handle, count, infos);                    \
    }

PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3, "C")
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3, "G")
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3, "M")

typedef union { double real; unsigned number; unsigned long long large; } Value;
typedef struct { unsigned long long t_us; Value value; } Sample;

/* The ring's samples that are newer than `since_us`, oldest first: as many as there is room for, all if only counted. */
EXPORT int nvmlDeviceGetSamples(
    Handle *handle, int type, unsigned long long since_us, unsigned *value_type, unsigned *count, Sample *samples)
{
    BEGIN(WHOLE_GPU);
    int scope = type == SAMPLES_MODULE_POWER ? SCOPE_MODULE : SCOPE_GPU;
    if ((type != SAMPLES_POWER && type != SAMPLES_MODULE_POWER) || (scope == SCOPE_MODULE && gpu->module < 0))
        return NOT_SUPPORTED;
    int64_t last_ns = published_ns(now_ns(), gpu->ring_update_ms, 0), step_ns = llround(gpu->ring_update_ms * 1e6);
    unsigned found = 0;
    for (int64_t t_ns = last_ns - (gpu->ring_length - 1) * step_ns; t_ns <= last_ns; t_ns += step_ns) {
        unsigned long long t_us = (unsigned long long)(t_ns + machine.origin_ns) / 1000;
        if (t_us <= since_us || (samples && found == *count))
            continue;
        if (samples)
            samples[found] = (Sample){ t_us, { .number = reading_mw(gpu, scope, t_ns, gpu->ring_window_ms) } };
        found++;
    }
    *value_type = TYPE_UINT;
    *count = found;
    return found ? SUCCESS : NOT_FOUND;
}

typedef struct {
    unsigned field, scope;
    long long t_us, latency_us;
    unsigned type;
    int code;
    Value value;
} FieldValue;

static int field_value(const Device *gpu, unsigned field, unsigned scope, FieldValue *answer)
{
    int power = field == FIELD_POWER_INSTANT || field == FIELD_POWER_AVERAGE;
    if ((scope != SCOPE_GPU && (scope != SCOPE_MODULE || gpu->module < 0)) || (power && gpu->instant_ms < 0))
        return NOT_SUPPORTED; /* an instant window below 0: no power by fields */
    answer->type = field == FIELD_ENERGY ? TYPE_U64 : TYPE_UINT;
    if (field == FIELD_ENERGY)
        return counter_mj(gpu, &answer->value.large);
    if (!power)
        return NOT_SUPPORTED;
    answer->value.number = power_mw(gpu, scope, field == FIELD_POWER_INSTANT ? gpu->instant_ms : gpu->average_ms);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetFieldValues(Handle *handle, int count, FieldValue *values)
{
    BEGIN(WHOLE_GPU);
    for (int i = 0; i < count; i++) {
        char name[32];
        snprintf(name, sizeof name, "field:%u", values[i].field);
        code = fault_of(name, handle->device);
        values[i].code = code ? code : field_value(gpu, values[i].field, values[i].scope, &values[i]);
        int64_t t_ns = strcmp(gpu->stamp, "tick") ? now_ns() : published_ns(now_ns(), gpu->update_ms, 0);
        values[i].t_us = (t_ns + machine.origin_ns) / 1000;
    }
    return SUCCESS;
}
