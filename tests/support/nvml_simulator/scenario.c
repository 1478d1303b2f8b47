/* Reads a scenario: one statement a line, `word key=value ...`. */
#include "simulator.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

Machine machine;
Module modules[MOST_ITEMS];
Device devices[MOST_DEVICES];
Piece pieces[MOST_ITEMS];
Hold holds[MOST_ITEMS];
Force forces[MOST_ITEMS];
Jump jumps[MOST_ITEMS];
Process processes[MOST_ITEMS];
Fault faults[MOST_ITEMS];
int machine_count, module_count, device_count, piece_count, hold_count, force_count, jump_count, process_count,
    fault_count;

Handle handles[MOST_DEVICES][1 + MOST_SLICES];

pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
int references;
volatile int64_t *clock_file;

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
    if (devices[device_count].mig > MOST_SLICES || devices[device_count].module >= module_count)
        complain("no such module, or too many slices", devices[device_count].name);
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
    processes[process_count] =
        (Process){ whole("device", 0), whole("memory", 0), text("pid", "self"), text("kind", "C") };
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
int load_scenario(void)
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
