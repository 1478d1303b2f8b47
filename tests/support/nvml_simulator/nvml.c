/* Faults, and the functions of NVML (nvml.h) that programs look for in libnvidia-ml.so.1. */
#include "simulator.h"

#include <errno.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

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

#define BEGIN(kind)                              \
    int code = begin_on(__func__, handle, kind); \
    if (code)                                    \
        return code;                             \
    const Device *gpu __attribute__((unused)) = &devices[handle->device]

/* A function of a GPU that answers one number; NUMBER_OF takes which (a sensor, a clock) and answers for all. */
#define NUMBER(function, type, value)                            \
    EXPORT int function(Handle *handle, type *number)            \
    {                                                            \
        BEGIN(WHOLE_GPU);                                        \
        *number = (type)(value);                                 \
        return SUCCESS;                                          \
    }
#define NUMBER_OF(function, type, value)                         \
    EXPORT int function(Handle *handle, int which, type *number) \
    {                                                            \
        BEGIN(WHOLE_GPU);                                        \
        *number = (type)(value);                                 \
        return which < 0 ? INVALID_ARGUMENT : SUCCESS;           \
    }

static int copy_text(char *to, unsigned length, const char *from)
{
    return snprintf(to, length, "%s", from) < (int)length ? SUCCESS : INSUFFICIENT_SIZE;
}

EXPORT int nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    pthread_mutex_lock(&lock);
    int code = references ? SUCCESS : load_scenario();
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

static unsigned power_mw(const Device *device, int scope, double window_ms)
{
    return reading_mw(device, scope, published_ns(now_ns(), device->update_ms, 0), window_ms);
}

NUMBER(nvmlDeviceGetIndex, unsigned, gpu - devices)
NUMBER(nvmlDeviceGetPowerUsage, unsigned, power_mw(gpu, SCOPE_GPU, gpu->average_ms))
NUMBER(nvmlDeviceGetEnforcedPowerLimit, unsigned, gpu->limit_mw)
NUMBER(nvmlDeviceGetPowerManagementLimit, unsigned, gpu->limit_mw)
NUMBER(nvmlDeviceGetPowerManagementDefaultLimit, unsigned, gpu->default_limit_mw)
NUMBER(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, gpu->throttle)
NUMBER(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, gpu->throttle)
NUMBER(nvmlDeviceGetMaxMigDeviceCount, unsigned, gpu->mig ? MOST_SLICES : 0)
NUMBER_OF(nvmlDeviceGetTemperature, unsigned, gpu->temperature)
NUMBER_OF(nvmlDeviceGetClockInfo, unsigned, gpu->clock_mhz)

EXPORT int nvmlDeviceGetTotalEnergyConsumption(Handle *handle, unsigned long long *energy_mj)
{
    BEGIN(WHOLE_GPU);
    return counter_mj(gpu, energy_mj);
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
        return list_processes(kind, handle, count, infos);                    \
    }

PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3, "C")
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3, "G")
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3, "M")

typedef union { double real; unsigned number; unsigned long long large; } Value;
typedef struct { unsigned long long t_us; Value value; } Sample;

/* The ring's samples that are newer than `since_us`, oldest first: as many as there is room for, or their number. */
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
