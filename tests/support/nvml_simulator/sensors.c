/* True power, and what sensors make of it. */
#include "simulator.h"

#include <stdlib.h>
#include <unistd.h>

/* ---- True power: its exact integral is enough, since every sensor says means. ---- */

int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (clock_file ? *clock_file : now.tv_sec * 1000000000LL + now.tv_nsec) - machine.origin_ns;
}

/* Take what a test appended to a power log meanwhile. */
static void follow_log(Piece *piece)
{
    struct { int64_t unix_ns; double watts; } entry;
    pthread_mutex_lock(&lock);
    int i = piece->count;
    for (; i < MOST_LOGGED && pread(piece->log_fd, &entry, sizeof entry, i * sizeof entry) == sizeof entry; i++) {
        double at_s = (entry.unix_ns - machine.origin_ns) / NS;
        piece->at_s = i ? piece->at_s : at_s;
        piece->offset_s[i] = at_s - piece->at_s;
        piece->watts[i] = entry.watts;
        if (i > 0)
            piece->joules[i] =
                piece->joules[i - 1] + piece->watts[i - 1] * (piece->offset_s[i] - piece->offset_s[i - 1]);
        __atomic_store_n(&piece->count, i + 1, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&lock);
}

/* Joules from a piece's beginning to an offset, not repeated. */
static double once_j(const Piece *piece, double offset_s)
{
    int i = __atomic_load_n(&piece->count, __ATOMIC_ACQUIRE) - 1, last = i;
    while (i > 0 && piece->offset_s[i] > offset_s)
        i--;
    double since_s = offset_s - piece->offset_s[i], mean_w = piece->watts[i];
    if (piece->ramp && i < last)
        mean_w += (piece->watts[i + 1] - mean_w) / (piece->offset_s[i + 1] - piece->offset_s[i]) * since_s / 2;
    return piece->joules[i] + mean_w * since_s;
}

static double piece_j(const Piece *piece, double offset_s)
{
    double times = piece->repeat_s > 0 ? floor(offset_s / piece->repeat_s) : 0;
    return (times > 0 ? times * once_j(piece, piece->repeat_s) : 0) + once_j(piece, offset_s - times * piece->repeat_s);
}

/* Joules of a device since its first piece began; before that it draws the first watts. */
static double device_j(int device, double t_s)
{
    double joules = 0;
    const Piece *now = NULL;
    for (int i = 0; i < piece_count; i++) {
        Piece *next = &pieces[i];
        if (next->device != device)
            continue;
        if (next->log)
            follow_log(next);
        if (now && next->at_s > t_s)
            break;
        joules += now ? piece_j(now, next->at_s - now->at_s) : 0;
        now = next;
    }
    if (!now || !now->count)
        return 0;
    return t_s < now->at_s ? now->watts[0] * (t_s - now->at_s) : joules + piece_j(now, t_s - now->at_s);
}

/* Joules of what a scope covers: the GPU, or all GPUs of its module and what is beside them there. */
static double true_j(const Device *device, int scope, double t_s)
{
    if (scope == SCOPE_GPU)
        return device_j((int)(device - devices), t_s);
    double joules = modules[device->module].extra_w * t_s;
    for (int i = 0; i < device_count; i++)
        joules += devices[i].module == device->module ? device_j(i, t_s) : 0;
    return joules;
}

/* ---- Sensors: what a device says at a time. ---- */

int64_t published_ns(int64_t t_ns, double period_ms, double phase_ms)
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

unsigned reading_mw(const Device *device, int scope, int64_t t_ns, double window_ms)
{
    for (int i = 0; i < force_count; i++)
        if (forces[i].device == device - devices && forces[i].from_s * NS <= t_ns && t_ns < forces[i].until_s * NS)
            return (unsigned)llround(fmin(forces[i].watts * 1e3, UINT32_MAX)); /* below 0: modulo 2^32 */
    t_ns = held_ns(device, "power", t_ns);
    double t_s = t_ns / NS, window_s = fmax(window_ms / 1e3, 1e-6); /* no window: the last microsecond */
    double watts = (true_j(device, scope, t_s) - true_j(device, scope, t_s - window_s)) / window_s;
    if (device->noise_w > 0)
        watts += device->noise_w * deviate(device, t_ns);
    return (unsigned)llround(fmax(watts, 0) * 1e3);
}

/* The energy counter: joules since the origin, or since it was set, as of its last publication. */
int counter_mj(const Device *device, unsigned long long *energy_mj)
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
