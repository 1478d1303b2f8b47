/* simnvml.c - a programmable stand-in for libnvidia-ml.so.1 (NVML ABI), for tests on machines without a GPU.
 *
 * Written from the public NVML API documentation and the ctypes signatures of the nvidia-ml-py binding.
 * Build:  cc -O2 -Wall -shared -fPIC -Wl,-soname,libnvidia-ml.so.1 -o libnvidia-ml.so.1 simnvml.c -lm -lpthread
 * Use:    SIMNVML_SCENARIO=/path/scenario.txt LD_LIBRARY_PATH=<dir> python ...
 * README.md beside this file has what it adds to the scenario language of ../../../../shared/simhw.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

typedef int ret_t;
enum { OK = 0, E_UNINIT = 1, E_ARG = 2, E_NOTSUP = 3, E_PERM = 4, E_NOTFOUND = 6, E_SIZE = 7, E_TIMEOUT = 10,
       E_LOST = 15, E_VERSION = 25, E_UNKNOWN = 999 };
enum { VT_DOUBLE, VT_UINT, VT_ULONG, VT_ULL, VT_SLL, VT_SINT };

/* ---- ABI structures ---------------------------------------------------------------------------------- */
typedef union { double d; unsigned ui; unsigned long ul; unsigned long long ull; long long sll; int si; } value_t;
typedef struct { unsigned field, scope; int64_t ts, lat; int vtype; int ret; value_t v; } field_t;
typedef struct { unsigned long long ts; value_t v; } sample_t;
typedef struct { unsigned gpu, mem; } util_t;
typedef struct { unsigned long long total, free, used; } mem1_t;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } mem2_t;
typedef struct { char legacy[16]; unsigned domain, bus, device, devid, subsys; char bus_id[32]; } pci_t;
typedef struct { unsigned pid; unsigned long long mem; unsigned gi, ci; } proc_t;
typedef struct { unsigned pid; unsigned long long mem; } proc1_t;
typedef struct { unsigned pid; unsigned long long ts; unsigned sm, mem, enc, dec; } procutil_t;
typedef struct { unsigned long long reference, violation; } viol_t;

/* ---- model ------------------------------------------------------------------------------------------- */
typedef struct { double off, w; } seg_t;                       /* offset in s from the phase start, watts */
typedef struct { double t0, period; int n, cap; seg_t *s; double e_period; } phase_t;
typedef struct { double t, v; } ev_t;
typedef struct { unsigned pid; unsigned long long mem; unsigned sm; char type; } sproc_t;

typedef struct gpu {
  int index, is_mig, mig_gi; struct gpu *parent;
  char name[96], uuid[80], serial[32], arch_s[16];
  unsigned arch; int cc_major, cc_minor;
  unsigned pci_domain, pci_bus, pci_dev, pci_id;
  unsigned long long mem_total, mem_used; int mem_unsupported;
  double limit_w, min_w, max_w, default_w; int limit_mw_set;
  double avg_update, avg_window, inst_update, inst_window, energy_update, phase, energy_phase, delay;
  int has_energy, has_field_power, energy_from_sensor; unsigned energy_quantum, power_quantum;
  double energy0_mj, gain, offset_w, noise_w, energy_gain; uint64_t seed;
  int fv_ts_tick; double scope_module_w, scope_memory_frac; int module, energy_of_module;
  int util_fixed; unsigned util_gpu, util_mem; double busy_w, util_window;
  unsigned temp, sm_clock, mem_clock, max_sm, max_mem; unsigned long long throttle; int pstate, throttle_power;
  int mig_mode, n_mig; struct gpu *mig;
  sproc_t proc[32]; int n_proc;
  phase_t *ph; int n_ph; double *ph_e;
  /* live power log */
  char live_path[512]; unsigned char *live; size_t live_len; double *live_e; uint64_t live_n, live_cap;
  /* anomalies */
  ev_t reset[16], add[16]; int n_reset, n_add; ev_t cfreeze[16], pfreeze[16]; int n_cf, n_pf;
  struct { double a, b, w; } force[16]; int n_force;
  double wrap_mj; double sample_period; int sample_buf;
  int64_t es_k; double es_sum; int es_ok;                      /* counter integrated from the sensor */
} gpu_t;

typedef struct { char fn[256]; int gpu, code; uint64_t after, count, every; double from, until, hang_ms; uint64_t seen, fired; } fault_t;

static struct {
  char driver[80], nvml[80]; int cuda; int64_t epoch; int epoch_load; char clock_path[512]; volatile int64_t *clock_map;
  double latency_us; int latency_spin; gpu_t *g; int n; fault_t f[64]; int n_f; int init_code; int log_fd;
} S;
static int refs; static int loaded;
static pthread_mutex_t mu = PTHREAD_MUTEX_INITIALIZER;

static int64_t now_ns(void) {
  if (S.clock_map) return *S.clock_map;
  struct timespec ts; clock_gettime(CLOCK_REALTIME, &ts);
  return (int64_t)ts.tv_sec * 1000000000LL + ts.tv_nsec;
}
static double rel(int64_t ns) { return (double)(ns - S.epoch) * 1e-9; }

/* ---- true power and its integral --------------------------------------------------------------------- */
static double seg_energy(const phase_t *p, double dt) {        /* J from phase start over one pass, dt in [0, period] */
  double e = 0;
  for (int i = 0; i < p->n; i++) {
    double a = p->s[i].off, b = i + 1 < p->n ? p->s[i + 1].off : (p->period > 0 ? p->period : INFINITY);
    if (dt <= a) break;
    e += (fmin(dt, b) - a) * p->s[i].w;
  }
  return e;
}
static double phase_energy(const phase_t *p, double dt) {
  if (p->period <= 0) return seg_energy(p, dt);
  double k = floor(dt / p->period);
  return k * p->e_period + seg_energy(p, dt - k * p->period);
}
static void live_refresh(gpu_t *g) {
  if (!g->live) return;
  uint64_t n = __atomic_load_n((uint64_t *)(g->live + 8), __ATOMIC_ACQUIRE);
  uint64_t max = (g->live_len - 16) / 16; if (n > max) n = max;
  if (n > g->live_cap) { g->live_cap = n * 2 + 64; g->live_e = realloc(g->live_e, g->live_cap * sizeof(double)); }
  const unsigned char *b = g->live + 16;
  for (uint64_t i = g->live_n; i < n; i++) {
    if (i == 0) { g->live_e[0] = 0; continue; }
    int64_t t0, t1; double w; memcpy(&t0, b + (i - 1) * 16, 8); memcpy(&w, b + (i - 1) * 16 + 8, 8); memcpy(&t1, b + i * 16, 8);
    g->live_e[i] = g->live_e[i - 1] + (double)(t1 - t0) * 1e-9 * w;
  }
  if (n < g->live_n) g->live_n = 0;
  g->live_n = n;
}
static double true_energy(gpu_t *g, double t) {                /* J since t=0 (negative before) */
  if (g->live) {
    live_refresh(g);
    if (!g->live_n) return 0;
    const unsigned char *b = g->live + 16; uint64_t lo = 0, hi = g->live_n;   /* last i with t_i <= t */
    int64_t tn = S.epoch + (int64_t)llround(t * 1e9), t0; double w;
    while (lo < hi) { uint64_t m = (lo + hi) / 2; memcpy(&t0, b + m * 16, 8); if (t0 <= tn) lo = m + 1; else hi = m; }
    if (lo == 0) { memcpy(&t0, b, 8); memcpy(&w, b + 8, 8); return -(double)(t0 - tn) * 1e-9 * w; }
    memcpy(&t0, b + (lo - 1) * 16, 8); memcpy(&w, b + (lo - 1) * 16 + 8, 8);
    return g->live_e[lo - 1] + (double)(tn - t0) * 1e-9 * w;
  }
  if (!g->n_ph) return 50.0 * t;
  int i = g->n_ph - 1; while (i > 0 && g->ph[i].t0 > t) i--;
  phase_t *p = &g->ph[i];
  if (t < p->t0) return (t - p->t0) * p->s[0].w;               /* before everything: first level */
  return g->ph_e[i] + phase_energy(p, t - p->t0);
}
static double true_power(gpu_t *g, double t) {
  if (g->live) {
    live_refresh(g); if (!g->live_n) return 0;
    const unsigned char *b = g->live + 16; uint64_t lo = 0, hi = g->live_n; int64_t tn = S.epoch + (int64_t)llround(t * 1e9), t0; double w;
    while (lo < hi) { uint64_t m = (lo + hi) / 2; memcpy(&t0, b + m * 16, 8); if (t0 <= tn) lo = m + 1; else hi = m; }
    memcpy(&w, b + (lo ? lo - 1 : 0) * 16 + 8, 8); return w;
  }
  if (!g->n_ph) return 50.0;
  int i = g->n_ph - 1; while (i > 0 && g->ph[i].t0 > t) i--;
  phase_t *p = &g->ph[i]; double dt = t - p->t0;
  if (dt < 0) return p->s[0].w;
  if (p->period > 0) dt -= floor(dt / p->period) * p->period;
  int j = p->n - 1; while (j > 0 && p->s[j].off > dt) j--;
  return p->s[j].w;
}

/* ---- sensor ------------------------------------------------------------------------------------------ */
static double hash_noise(uint64_t a, uint64_t b) {              /* uniform in [-1, 1] */
  uint64_t x = a * 0x9E3779B97F4A7C15ull ^ (b + 0x632BE59BD9B4E019ull);
  x ^= x >> 30; x *= 0xBF58476D1CE4E5B9ull; x ^= x >> 27; x *= 0x94D049BB133111EBull; x ^= x >> 31;
  return (double)(x >> 11) / 4503599627370496.0 - 1.0;
}
static double tick_of(double t, double upd, double phase) { return upd > 0 ? floor((t - phase) / upd) * upd + phase : t; }
static double freeze(double t, const ev_t *f, int n) { for (int i = 0; i < n; i++) if (t >= f[i].t && t < f[i].v) t = f[i].t; return t; }

/* A module is its GPUs, and `module_extra_w` for its CPU and memory. */
static int same_module(const gpu_t *g, int i) { return &S.g[i] == g || (g->module >= 0 && S.g[i].module == g->module); }
static double counted_energy(gpu_t *g, double t) {
  if (!g->energy_of_module) return true_energy(g, t);
  double e = fmax(g->scope_module_w, 0) * t;
  for (int i = 0; i < S.n; i++) if (same_module(g, i)) e += true_energy(&S.g[i], t);
  return e;
}

static double sensor_w(gpu_t *g, double t, double upd, double win, double *tick) {
  t = freeze(t - g->delay, g->pfreeze, g->n_pf);
  for (int i = 0; i < g->n_force; i++) if (t >= g->force[i].a && t < g->force[i].b) { if (tick) *tick = t; return g->force[i].w; }
  double tk = tick_of(t, upd, g->phase); if (tick) *tick = tk;
  double w = win > 0 ? (true_energy(g, tk) - true_energy(g, tk - win)) / win : true_power(g, tk);
  w = w * g->gain + g->offset_w;
  if (g->noise_w > 0) w += g->noise_w * hash_noise(g->seed + 7919u * g->index, (uint64_t)llround((tk - g->phase) * 1e6));
  return w < 0 ? 0 : w;
}
static unsigned to_mw(gpu_t *g, double w) { double q = g->power_quantum ? g->power_quantum : 1; return (unsigned)llround(floor(w * 1000 / q + 0.5) * q); }
static unsigned avg_mw(gpu_t *g, double t) { return to_mw(g, sensor_w(g, t, g->avg_update, g->avg_window, NULL)); }
static unsigned inst_mw(gpu_t *g, double t, double *tk) { return to_mw(g, sensor_w(g, t, g->inst_update, g->inst_window, tk)); }

static unsigned long long counter_mj(gpu_t *g, double t) {
  t = freeze(t, g->cfreeze, g->n_cf);
  double tk = tick_of(t, g->energy_update, g->energy_phase), e;
  if (g->energy_from_sensor) {                                  /* what a counter fed by the part-time sensor would say */
    double u = g->inst_update > 0 ? g->inst_update : 0.1;
    int64_t k = (int64_t)floor((tk - g->phase) / u + 1e-9);
    if (!g->es_ok || k < g->es_k) { g->es_k = (int64_t)floor((0 - g->phase) / u); g->es_sum = 0; g->es_ok = 1; }
    while (g->es_k < k) { g->es_k++; g->es_sum += u * sensor_w(g, g->es_k * u + g->phase + 1e-9, u, g->inst_window, NULL); }
    e = g->es_sum;
  } else e = counted_energy(g, tk);
  e = e * 1000 * g->energy_gain;
  double base = g->energy0_mj;
  for (int i = 0; i < g->n_reset; i++) if (tk >= g->reset[i].t) base = g->reset[i].v - counted_energy(g, tick_of(g->reset[i].t, g->energy_update, g->energy_phase)) * 1000 * g->energy_gain;
  for (int i = 0; i < g->n_add; i++) if (tk >= g->add[i].t) base += g->add[i].v;
  e += base; if (e < 0) e = 0;
  if (g->wrap_mj > 0) e = fmod(e, g->wrap_mj);
  unsigned long long q = g->energy_quantum ? g->energy_quantum : 1;
  return (unsigned long long)(e / q) * q;
}
static void utilization(gpu_t *g, double t, util_t *u) {
  if (g->util_fixed) { u->gpu = g->util_gpu; u->mem = g->util_mem; return; }
  double w = g->util_window > 0 ? g->util_window : 0.166; int n = 0, busy = 0;
  double tk = tick_of(t, w, g->phase);
  for (double x = tk - w; x < tk; x += w / 160) { n++; busy += true_power(g, x) > g->busy_w; }
  u->gpu = n ? (unsigned)(100.0 * busy / n + 0.5) : 0; u->mem = u->gpu / 2;
}

static unsigned module_mw(gpu_t *g, double t, int average, double *tk) {
  double mw = g->scope_module_w * 1000;
  for (int i = 0; i < S.n; i++) if (same_module(g, i)) mw += average ? avg_mw(&S.g[i], t) : inst_mw(&S.g[i], t, tk);
  return (unsigned)llround(mw);
}

/* ---- scenario file ----------------------------------------------------------------------------------- */
static double num(const char *s) { char *e; double v = strtod(s, &e); switch (tolower((unsigned char)*e)) { case 'k': v *= 1024.; break; case 'm': v *= 1048576.; break; case 'g': v *= 1073741824.; break; } return v; }

static void preset(gpu_t *g, const char *a) {
  static const struct { const char *n; unsigned id; int M, m; double au, aw, iu, iw, eu; int energy, field; } T[] = {
    {"kepler", 2, 3, 5, .015, .015, .015, .015, 0, 0, 0},   {"maxwell", 3, 5, 2, .1, .1, .1, .1, 0, 0, 1},
    {"pascal", 4, 6, 0, .02, .01, .02, .01, 0, 0, 1},       {"volta", 5, 7, 0, .02, .01, .02, .01, .02, 1, 1},
    {"turing", 6, 7, 5, .1, .1, .1, .1, .1, 1, 1},          {"ga100", 7, 8, 0, .1, .025, .1, .025, .1, 1, 1},
    {"ampere", 7, 8, 6, .1, 1.0, .1, .1, .1, 1, 1},         {"ada", 8, 8, 9, .1, 1.0, .1, .1, .1, 1, 1},
    {"hopper", 9, 9, 0, .1, 1.0, .1, .025, .1, 1, 1},       {"blackwell", 10, 10, 0, .1, 1.0, .1, .025, .1, 1, 1},
    {"ideal", 9, 9, 0, 0, 0, 0, 0, 0, 1, 1}};
  for (unsigned i = 0; i < sizeof T / sizeof *T; i++) if (!strcasecmp(T[i].n, a)) {
    snprintf(g->arch_s, sizeof g->arch_s, "%s", a); g->arch = T[i].id; g->cc_major = T[i].M; g->cc_minor = T[i].m;
    g->avg_update = T[i].au; g->avg_window = T[i].aw; g->inst_update = T[i].iu; g->inst_window = T[i].iw;
    g->energy_update = T[i].eu; g->has_energy = T[i].energy; g->has_field_power = T[i].field; return; }
  fprintf(stderr, "simnvml: unknown arch '%s'\n", a);
}
static void gpu_defaults(gpu_t *g, int i) {
  memset(g, 0, sizeof *g); g->index = i;
  snprintf(g->name, sizeof g->name, "NVIDIA SimGPU %d", i);
  snprintf(g->uuid, sizeof g->uuid, "GPU-51a00000-0000-4000-8000-%012x", i);
  snprintf(g->serial, sizeof g->serial, "15%011d", i);
  preset(g, "hopper");
  g->pci_bus = 0x1a + i; g->pci_id = 0x233010de; g->mem_total = 80ull << 30; g->mem_used = 1ull << 30;
  g->limit_w = g->max_w = g->default_w = 700; g->min_w = 200; g->gain = g->energy_gain = 1; g->energy_quantum = 1; g->power_quantum = 1;
  g->busy_w = 150; g->temp = 40; g->sm_clock = 1980; g->mem_clock = 2619; g->max_sm = 1980; g->max_mem = 2619;
  g->sample_period = 0.02; g->sample_buf = 100; g->seed = 1; g->energy0_mj = 1e9; g->scope_module_w = -1; g->scope_memory_frac = -1; g->module = -1;
}
static void live_open(gpu_t *g) {
  int fd = open(g->live_path, O_RDONLY | O_CLOEXEC); struct stat st;
  if (fd < 0 || fstat(fd, &st) || st.st_size < 32) { fprintf(stderr, "simnvml: cannot map %s\n", g->live_path); if (fd >= 0) close(fd); return; }
  g->live = mmap(NULL, st.st_size, PROT_READ, MAP_SHARED, fd, 0); g->live_len = st.st_size; close(fd);
  if (g->live == MAP_FAILED || memcmp(g->live, "SNVPWR01", 8)) { fprintf(stderr, "simnvml: %s is not a live power log\n", g->live_path); g->live = NULL; }
}
static void finish_gpu(gpu_t *g) {
  g->ph_e = calloc(g->n_ph + 1, sizeof(double));
  for (int i = 0; i < g->n_ph; i++) {
    phase_t *p = &g->ph[i];
    if (!p->n) { p->s = calloc(1, sizeof(seg_t)); p->n = 1; }
    if (p->period > 0) p->e_period = seg_energy(p, p->period);
    g->ph_e[i] = i ? g->ph_e[i - 1] + phase_energy(&g->ph[i - 1], p->t0 - g->ph[i - 1].t0) : 0;
  }
  if (g->n_ph && g->ph[0].t0 != 0 && g->ph[0].t0 > 0) { double d = g->ph[0].t0 * g->ph[0].s[0].w; for (int i = 0; i < g->n_ph; i++) g->ph_e[i] += d; }
  if (g->live_path[0]) live_open(g);
  if (g->n_mig > 0) {
    g->mig = calloc(g->n_mig, sizeof(gpu_t));
    for (int j = 0; j < g->n_mig; j++) {
      gpu_t *m = &g->mig[j]; *m = *g; m->is_mig = 1; m->parent = g; m->mig_gi = j + 1; m->mig = NULL; m->n_mig = 0;
      snprintf(m->uuid, sizeof m->uuid, "MIG-%.40s-%02d", g->uuid + 4, j); snprintf(m->name, sizeof m->name, "%.70s MIG 1g.10gb", g->name);
      m->mem_total = g->mem_total / 8; m->mem_used = g->mem_used / 8;
    }
  }
}
static void add_proc(gpu_t *g, const char *rest) {
  char pid[32] = ""; char mem[32] = "0"; unsigned sm = 0; char type = 'C';
  if (sscanf(rest, "%31s %31s %u %c", pid, mem, &sm, &type) < 1 || g->n_proc >= 32) return;
  sproc_t *p = &g->proc[g->n_proc++]; p->pid = strcmp(pid, "self") ? (unsigned)atoi(pid) : 0; p->mem = (unsigned long long)num(mem); p->sm = sm; p->type = type;
}
static void scenario_free(void) {
  for (int i = 0; i < S.n; i++) { gpu_t *g = &S.g[i]; for (int j = 0; j < g->n_ph; j++) free(g->ph[j].s); free(g->ph); free(g->ph_e); free(g->live_e); free(g->mig); if (g->live) munmap(g->live, g->live_len); }
  free(S.g); if (S.clock_map) munmap((void *)S.clock_map, 8); if (S.log_fd > 0) close(S.log_fd); memset(&S, 0, sizeof S);
}
static int load(void) {
  scenario_free();
  strcpy(S.driver, "570.124.06"); strcpy(S.nvml, "12.570.124.06"); S.cuda = 12080; S.epoch_load = 1; S.log_fd = -1;
  const char *path = getenv("SIMNVML_SCENARIO"), *ep = getenv("SIMNVML_EPOCH_NS"), *lg = getenv("SIMNVML_LOG");
  FILE *f = path && *path ? fopen(path, "r") : NULL;
  if (path && *path && !f) { fprintf(stderr, "simnvml: cannot open %s\n", path); return 9; }
  char line[2048]; gpu_t *g = NULL; phase_t *p = NULL; int ln = 0;
  while (f && fgets(line, sizeof line, f)) {
    ln++; char *h = strchr(line, '#'); if (h) *h = 0;
    char k[64]; int off = 0; if (sscanf(line, "%63s %n", k, &off) < 1) continue;
    char *r = line + off; size_t L = strlen(r); while (L && isspace((unsigned char)r[L - 1])) r[--L] = 0;
    double v = num(r), a = 0, b = 0, c = 0; int na = sscanf(r, "%lf %lf %lf", &a, &b, &c); (void)na;
#define K(s) (!strcmp(k, s))
#define STR(dst) snprintf(dst, sizeof dst, "%s", r)
    if K("driver") STR(S.driver); else if K("nvml") STR(S.nvml); else if K("cuda") S.cuda = (int)v;
    else if K("epoch") { if (strcmp(r, "load")) { S.epoch = strtoll(r, NULL, 10); S.epoch_load = 0; } }
    else if K("clock") { char kind[16], cp[500]; if (sscanf(r, "%15s %499s", kind, cp) == 2 && !strcmp(kind, "file")) snprintf(S.clock_path, sizeof S.clock_path, "%s", cp); }
    else if K("latency_us") { S.latency_us = a; S.latency_spin = strstr(r, "spin") != NULL; }
    else if K("init_error") S.init_code = (int)v;
    else if K("fault") {
      if (S.n_f >= 64) continue;
      fault_t *x = &S.f[S.n_f++]; memset(x, 0, sizeof *x); strcpy(x->fn, "*"); x->gpu = g ? g->index : -1; x->code = E_UNKNOWN; x->until = INFINITY; x->from = -INFINITY;
      for (char *tok = strtok(r, " \t"); tok; tok = strtok(NULL, " \t")) {
        char *eq = strchr(tok, '='); if (!eq) continue; *eq++ = 0; double d = atof(eq);
        if (!strcmp(tok, "fn")) snprintf(x->fn, sizeof x->fn, "%s", eq); else if (!strcmp(tok, "gpu")) x->gpu = (int)d; else if (!strcmp(tok, "code")) x->code = (int)d;
        else if (!strcmp(tok, "after")) x->after = (uint64_t)d; else if (!strcmp(tok, "count")) x->count = (uint64_t)d; else if (!strcmp(tok, "every")) x->every = (uint64_t)d;
        else if (!strcmp(tok, "from")) x->from = d; else if (!strcmp(tok, "until")) x->until = d; else if (!strcmp(tok, "hang_ms")) { x->hang_ms = d; if (x->code == E_UNKNOWN) x->code = 0; }
      }
    }
    else if K("gpu") {
      S.g = realloc(S.g, (S.n + 1) * sizeof(gpu_t)); g = &S.g[S.n]; gpu_defaults(g, S.n++); p = NULL; if (*r) preset(g, r);
    }
    else if (!g) fprintf(stderr, "simnvml: %s:%d: '%s' before any gpu\n", path, ln, k);
    else if K("name") STR(g->name); else if K("uuid") STR(g->uuid); else if K("serial") STR(g->serial); else if K("arch") preset(g, r);
    else if K("cc") { g->cc_major = (int)a; g->cc_minor = (int)llround((a - floor(a)) * 10); }
    else if K("pci") { if (sscanf(r, "%x:%x:%x", &g->pci_domain, &g->pci_bus, &g->pci_dev) != 3) fprintf(stderr, "simnvml: bad pci %s\n", r); }
    else if K("mem_total") { g->mem_total = (unsigned long long)v; } else if K("mem_used") g->mem_used = (unsigned long long)v; else if K("mem_unsupported") g->mem_unsupported = 1;
    else if K("limit_w") { g->limit_w = a; if (g->max_w < a) g->max_w = a; } else if K("max_w") g->max_w = a; else if K("min_w") g->min_w = a; else if K("default_w") g->default_w = a;
    else if K("power_update_ms") g->avg_update = a / 1e3; else if K("power_window_ms") g->avg_window = a / 1e3;
    else if K("instant_update_ms") g->inst_update = a / 1e3; else if K("instant_window_ms") g->inst_window = a / 1e3;
    else if K("energy_update_ms") { g->energy_update = a / 1e3; g->has_energy = 1; } else if K("energy_quantum_mj") g->energy_quantum = (unsigned)a; else if K("power_quantum_mw") g->power_quantum = (unsigned)a;
    else if K("phase_ms") { g->phase = a / 1e3; g->energy_phase = a / 1e3; } else if K("energy_phase_ms") g->energy_phase = a / 1e3; else if K("delay_ms") g->delay = a / 1e3;
    else if K("energy") g->has_energy = strcmp(r, "none") != 0; else if K("energy_source") g->energy_from_sensor = !strcmp(r, "sensor"); else if K("energy0_mj") g->energy0_mj = a; else if K("energy_gain") g->energy_gain = a;
    else if K("field_power") g->has_field_power = strcmp(r, "none") != 0;
    else if K("gain") g->gain = a; else if K("offset_w") g->offset_w = a; else if K("noise_w") g->noise_w = a; else if K("seed") g->seed = (uint64_t)a;
    else if K("fv_timestamp") g->fv_ts_tick = !strcmp(r, "tick"); else if K("module_extra_w") g->scope_module_w = a; else if K("module") g->module = (int)a; else if K("energy_scope") g->energy_of_module = !strcmp(r, "module"); else if K("memory_frac") g->scope_memory_frac = a;
    else if K("util") { if (!strcmp(r, "auto")) g->util_fixed = 0; else { g->util_fixed = 1; g->util_gpu = (unsigned)a; g->util_mem = (unsigned)b; } } else if K("busy_w") g->busy_w = a; else if K("util_window_ms") g->util_window = a / 1e3;
    else if K("temp") g->temp = (unsigned)a; else if K("clocks") { g->sm_clock = (unsigned)a; g->mem_clock = (unsigned)b; } else if K("throttle") { if (!strcmp(r, "auto")) g->throttle_power = 1; else g->throttle = strtoull(r, NULL, 0); } else if K("pstate") g->pstate = (int)a;
    else if K("mig") { g->mig_mode = 1; g->n_mig = (int)a > 7 ? 7 : (int)a; } else if K("proc") add_proc(g, r);
    else if K("live") STR(g->live_path);
    else if K("phase") { char pk[16]; double t0 = 0, per = 0; sscanf(r, "%lf %15s %lf", &t0, pk, &per);
      g->ph = realloc(g->ph, (g->n_ph + 1) * sizeof(phase_t)); p = &g->ph[g->n_ph++]; memset(p, 0, sizeof *p); p->t0 = t0; p->period = per; }
    else if K("seg") { if (!p) { g->ph = realloc(g->ph, (g->n_ph + 1) * sizeof(phase_t)); p = &g->ph[g->n_ph++]; memset(p, 0, sizeof *p); }
      if (p->n == p->cap) { p->cap = p->cap * 2 + 8; p->s = realloc(p->s, p->cap * sizeof(seg_t)); } p->s[p->n].off = a; p->s[p->n++].w = b; }
    else if K("counter_reset") { if (g->n_reset < 16) { g->reset[g->n_reset].t = a; g->reset[g->n_reset++].v = b; } }
    else if K("counter_add") { if (g->n_add < 16) { g->add[g->n_add].t = a; g->add[g->n_add++].v = b; } }
    else if K("counter_freeze") { if (g->n_cf < 16) { g->cfreeze[g->n_cf].t = a; g->cfreeze[g->n_cf++].v = b; } }
    else if K("counter_wrap_mj") g->wrap_mj = a;
    else if K("power_freeze") { if (g->n_pf < 16) { g->pfreeze[g->n_pf].t = a; g->pfreeze[g->n_pf++].v = b; } }
    else if K("power_force") { if (g->n_force < 16) { g->force[g->n_force].a = a; g->force[g->n_force].b = b; g->force[g->n_force++].w = c; } }
    else if K("sample_period_ms") g->sample_period = a / 1e3; else if K("sample_buffer") g->sample_buf = (int)a;
    else if K("unsupported") { for (char *tok = strtok(r, " ,\t"); tok && S.n_f < 64; tok = strtok(NULL, " ,\t")) { fault_t *x = &S.f[S.n_f++]; memset(x, 0, sizeof *x); snprintf(x->fn, sizeof x->fn, "%s", tok); x->gpu = g->index; x->code = E_NOTSUP; x->until = INFINITY; x->from = -INFINITY; } }
    else fprintf(stderr, "simnvml: %s:%d: unknown key '%s'\n", path, ln, k);
  }
  if (f) fclose(f);
  if (!path || !*path) { S.g = calloc(1, sizeof(gpu_t)); S.n = 1; gpu_defaults(&S.g[0], 0); }
  if (S.clock_path[0]) { int fd = open(S.clock_path, O_RDONLY | O_CLOEXEC); if (fd >= 0) { void *m = mmap(NULL, 8, PROT_READ, MAP_SHARED, fd, 0); close(fd); if (m != MAP_FAILED) S.clock_map = m; } }
  if (ep && *ep) { S.epoch = strtoll(ep, NULL, 10); S.epoch_load = 0; }
  if (S.epoch_load) S.epoch = now_ns();
  for (int i = 0; i < S.n; i++) finish_gpu(&S.g[i]);
  if (lg && *lg) S.log_fd = open(lg, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  return S.init_code;
}

/* ---- entry: init check, faults, latency, call counts -------------------------------------------------- */
#define MAXFN 160
static struct { const char *fn; uint64_t n; } stat_[MAXFN]; static int n_stat;
static void count(const char *fn) {
  for (int i = 0; i < n_stat; i++) if (stat_[i].fn == fn) { __atomic_add_fetch(&stat_[i].n, 1, __ATOMIC_RELAXED); return; }
  pthread_mutex_lock(&mu); if (n_stat < MAXFN) { stat_[n_stat].fn = fn; stat_[n_stat].n = 1; __atomic_add_fetch(&n_stat, 1, __ATOMIC_RELEASE); } pthread_mutex_unlock(&mu);
}
__attribute__((destructor)) static void dump_stats(void) {
  const char *p = getenv("SIMNVML_STATS"); if (!p || !*p) return;
  FILE *f = fopen(p, "a"); if (!f) return;
  for (int i = 0; i < n_stat; i++) fprintf(f, "%d %s %llu\n", (int)getpid(), stat_[i].fn, (unsigned long long)stat_[i].n);
  fclose(f);
}
static void pause_ms(double ms, int spin) {
  if (ms <= 0) return;
  if (spin) { struct timespec a, b; clock_gettime(CLOCK_MONOTONIC, &a); do clock_gettime(CLOCK_MONOTONIC, &b); while ((b.tv_sec - a.tv_sec) * 1e3 + (b.tv_nsec - a.tv_nsec) / 1e6 < ms); return; }
  struct timespec ts = {(time_t)(ms / 1e3), (long)(fmod(ms, 1e3) * 1e6)}; while (nanosleep(&ts, &ts) && errno == EINTR) {}
}
static int fn_match(const char *pat, const char *fn) {           /* comma list of fnmatch patterns */
  char b[256]; snprintf(b, sizeof b, "%s", pat); char *sv = NULL;
  for (char *t = strtok_r(b, ",", &sv); t; t = strtok_r(NULL, ",", &sv)) if (!fnmatch(t, fn, 0)) return 1;
  return 0;
}
static ret_t faults(const char *fn, int gpu) {
  double t = rel(now_ns());
  for (int i = 0; i < S.n_f; i++) {
    fault_t *x = &S.f[i];
    if (x->gpu >= 0 && gpu >= 0 && x->gpu != gpu) continue;
    if (x->gpu >= 0 && gpu < 0) continue;
    if (t < x->from || t >= x->until || !fn_match(x->fn, fn)) continue;
    uint64_t seen = __atomic_add_fetch(&x->seen, 1, __ATOMIC_RELAXED);
    if (seen <= x->after) continue;
    if (x->every && (seen - x->after - 1) % x->every) continue;
    if (x->count && __atomic_add_fetch(&x->fired, 1, __ATOMIC_RELAXED) > x->count) continue;
    if (x->hang_ms > 0) pause_ms(x->hang_ms, 0);
    if (x->code) return x->code;
  }
  return OK;
}
static ret_t enter_sys(const char *fn) {
  count(fn); if (!__atomic_load_n(&refs, __ATOMIC_ACQUIRE)) return E_UNINIT;
  if (S.latency_us > 0) pause_ms(S.latency_us / 1e3, S.latency_spin);
  return S.n_f ? faults(fn, -1) : OK;
}
static gpu_t *check(void *h) {
  for (int i = 0; i < S.n; i++) { if (h == &S.g[i]) return h; for (int j = 0; j < S.g[i].n_mig; j++) if (h == &S.g[i].mig[j]) return h; }
  return NULL;
}
static void logcall(const char *fn, int gpu, ret_t r) {
  if (S.log_fd < 0) return;
  char b[200]; int n = snprintf(b, sizeof b, "%lld %d %s %d %d\n", (long long)now_ns(), (int)getpid(), fn, gpu, r); if (write(S.log_fd, b, n) < 0) {}
}
static ret_t enter_dev(const char *fn, void *h, gpu_t **g) {
  count(fn); if (!__atomic_load_n(&refs, __ATOMIC_ACQUIRE)) return E_UNINIT;
  if (!(*g = check(h))) return E_ARG;
  if (S.latency_us > 0) pause_ms(S.latency_us / 1e3, S.latency_spin);
  ret_t r = S.n_f ? faults(fn, (*g)->index) : OK; logcall(fn, (*g)->index, r); return r;
}
#define SYS() do { ret_t r_ = enter_sys(__func__); if (r_) return r_; } while (0)
#define DEV(h) gpu_t *g; do { ret_t r_ = enter_dev(__func__, h, &g); if (r_) return r_; } while (0)
#define NOMIG() do { if (g->is_mig) return E_NOTSUP; } while (0)
#define ARG(c) do { if (!(c)) return E_ARG; } while (0)
#define NOW() rel(now_ns())
#define LOCK() pthread_mutex_lock(&mu)
#define UNLOCK() pthread_mutex_unlock(&mu)
static ret_t put(char *d, unsigned n, const char *s) { if (!d) return E_ARG; if (strlen(s) + 1 > n) return E_SIZE; strcpy(d, s); return OK; }

/* ---- library ----------------------------------------------------------------------------------------- */
static void child(void) { pthread_mutex_init(&mu, NULL); }
EXPORT ret_t nvmlInitWithFlags(unsigned flags) {
  (void)flags; count(__func__); LOCK(); ret_t r = OK;
  if (!refs) { if (!loaded) pthread_atfork(NULL, NULL, child); loaded = 1; r = load(); }
  if (!r) __atomic_add_fetch(&refs, 1, __ATOMIC_RELEASE);
  UNLOCK(); return r;
}
EXPORT ret_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
EXPORT ret_t nvmlInit(void) { return nvmlInitWithFlags(0); }
EXPORT ret_t nvmlShutdown(void) { count(__func__); LOCK(); ret_t r = refs ? OK : E_UNINIT; if (refs) refs--; UNLOCK(); return r; }
EXPORT const char *nvmlErrorString(ret_t r) {
  static const char *const T[] = {"Success", "Uninitialized", "Invalid Argument", "Not Supported", "Insufficient Permissions", "Already Initialized", "Not Found", "Insufficient Size",
    "Insufficient External Power", "Driver Not Loaded", "Timeout", "Interrupt Request Issue", "NVML Shared Library Not Found", "Function Not Found", "Corrupted infoROM", "GPU is lost",
    "GPU requires reset", "The operating system has blocked the request", "RM has detected an NVML/RM version mismatch", "In use by another client", "Insufficient Memory", "No data",
    "ECC not supported for vGPU", "Insufficient resources", "Frequency not supported", "Argument version mismatch", "Deprecated", "Not ready", "GPU not found", "Invalid state"};
  return r >= 0 && r < (int)(sizeof T / sizeof *T) ? T[r] : "Unknown Error";
}
EXPORT ret_t nvmlSystemGetDriverVersion(char *s, unsigned n) { SYS(); return put(s, n, S.driver); }
EXPORT ret_t nvmlSystemGetNVMLVersion(char *s, unsigned n) { SYS(); return put(s, n, S.nvml); }
EXPORT ret_t nvmlSystemGetCudaDriverVersion_v2(int *v) { SYS(); ARG(v); *v = S.cuda; return OK; }
EXPORT ret_t nvmlSystemGetCudaDriverVersion(int *v) { return nvmlSystemGetCudaDriverVersion_v2(v); }
EXPORT ret_t nvmlSystemGetProcessName(unsigned pid, char *s, unsigned n) {
  SYS(); ARG(s && n); char p[64], b[512]; snprintf(p, sizeof p, "/proc/%u/cmdline", pid); FILE *f = fopen(p, "r"); if (!f) return E_NOTFOUND;
  size_t k = fread(b, 1, sizeof b - 1, f); fclose(f); b[k] = 0; snprintf(s, n, "%s", b); return OK;
}
EXPORT ret_t nvmlDeviceGetCount_v2(unsigned *n) { SYS(); ARG(n); *n = S.n; return OK; }
EXPORT ret_t nvmlDeviceGetCount(unsigned *n) { return nvmlDeviceGetCount_v2(n); }
EXPORT ret_t nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) { SYS(); ARG(h && i < (unsigned)S.n); *h = &S.g[i]; ret_t r = S.n_f ? faults("handle", i) : OK; return r; }
EXPORT ret_t nvmlDeviceGetHandleByIndex(unsigned i, void **h) { return nvmlDeviceGetHandleByIndex_v2(i, h); }
EXPORT ret_t nvmlDeviceGetHandleByUUID(const char *u, void **h) {
  SYS(); ARG(u && h);
  for (int i = 0; i < S.n; i++) { if (!strcmp(u, S.g[i].uuid)) { *h = &S.g[i]; return OK; } for (int j = 0; j < S.g[i].n_mig; j++) if (!strcmp(u, S.g[i].mig[j].uuid)) { *h = &S.g[i].mig[j]; return OK; } }
  return E_NOTFOUND;
}
EXPORT ret_t nvmlDeviceGetHandleByPciBusId_v2(const char *b, void **h) {
  SYS(); ARG(b && h); unsigned d = 0, bus = 0, dev = 0; if (sscanf(b, "%x:%x:%x", &d, &bus, &dev) != 3) { d = 0; if (sscanf(b, "%x:%x", &bus, &dev) != 2) return E_ARG; }
  for (int i = 0; i < S.n; i++) if (S.g[i].pci_domain == d && S.g[i].pci_bus == bus && S.g[i].pci_dev == dev) { *h = &S.g[i]; return OK; }
  return E_NOTFOUND;
}
EXPORT ret_t nvmlDeviceGetHandleByPciBusId(const char *b, void **h) { return nvmlDeviceGetHandleByPciBusId_v2(b, h); }
EXPORT ret_t nvmlDeviceGetHandleBySerial(const char *s, void **h) { SYS(); ARG(s && h); for (int i = 0; i < S.n; i++) if (!strcmp(s, S.g[i].serial)) { *h = &S.g[i]; return OK; } return E_NOTFOUND; }

EXPORT ret_t nvmlDeviceGetName(void *d, char *s, unsigned n) { DEV(d); return put(s, n, g->name); }
EXPORT ret_t nvmlDeviceGetUUID(void *d, char *s, unsigned n) { DEV(d); return put(s, n, g->uuid); }
EXPORT ret_t nvmlDeviceGetSerial(void *d, char *s, unsigned n) { DEV(d); return put(s, n, g->serial); }
EXPORT ret_t nvmlDeviceGetVbiosVersion(void *d, char *s, unsigned n) { DEV(d); return put(s, n, "00.00.00.00.01"); }
EXPORT ret_t nvmlDeviceGetIndex(void *d, unsigned *i) { DEV(d); ARG(i); *i = g->is_mig ? (unsigned)g->mig_gi - 1 : (unsigned)g->index; return OK; }
EXPORT ret_t nvmlDeviceGetMinorNumber(void *d, unsigned *i) { DEV(d); ARG(i); NOMIG(); *i = g->index; return OK; }
EXPORT ret_t nvmlDeviceGetPciInfo_v3(void *d, pci_t *p) {
  DEV(d); ARG(p); memset(p, 0, sizeof *p); p->domain = g->pci_domain; p->bus = g->pci_bus; p->device = g->pci_dev; p->devid = g->pci_id; p->subsys = 0x16c110de;
  snprintf(p->legacy, sizeof p->legacy, "%04X:%02X:%02X.0", g->pci_domain & 0xffff, g->pci_bus & 0xff, g->pci_dev & 0xff);
  snprintf(p->bus_id, sizeof p->bus_id, "%08X:%02X:%02X.0", g->pci_domain, g->pci_bus & 0xff, g->pci_dev & 0xff); return OK;
}
EXPORT ret_t nvmlDeviceGetPciInfo_v2(void *d, pci_t *p) { return nvmlDeviceGetPciInfo_v3(d, p); }
EXPORT ret_t nvmlDeviceGetPciInfo(void *d, pci_t *p) { return nvmlDeviceGetPciInfo_v3(d, p); }
EXPORT ret_t nvmlDeviceGetArchitecture(void *d, unsigned *a) { DEV(d); ARG(a); *a = g->arch; return OK; }
EXPORT ret_t nvmlDeviceGetCudaComputeCapability(void *d, int *M, int *m) { DEV(d); ARG(M && m); *M = g->cc_major; *m = g->cc_minor; return OK; }
EXPORT ret_t nvmlDeviceGetBrand(void *d, unsigned *b) { DEV(d); ARG(b); *b = 14; return OK; }
EXPORT ret_t nvmlDeviceGetPersistenceMode(void *d, unsigned *m) { DEV(d); ARG(m); *m = 1; return OK; }
EXPORT ret_t nvmlDeviceGetComputeMode(void *d, unsigned *m) { DEV(d); ARG(m); *m = 0; return OK; }
EXPORT ret_t nvmlDeviceGetDisplayMode(void *d, unsigned *m) { DEV(d); ARG(m); *m = 0; return OK; }
EXPORT ret_t nvmlDeviceGetDisplayActive(void *d, unsigned *m) { DEV(d); ARG(m); *m = 0; return OK; }
EXPORT ret_t nvmlDeviceGetNumGpuCores(void *d, unsigned *n) { DEV(d); ARG(n); *n = 16896; return OK; }
EXPORT ret_t nvmlDeviceGetC2cModeInfoV(void *d, unsigned *i) { DEV(d); ARG(i); if (g->scope_module_w < 0) return E_NOTSUP; *i = 1; return OK; }

/* ---- power and energy -------------------------------------------------------------------------------- */
EXPORT ret_t nvmlDeviceGetPowerUsage(void *d, unsigned *mw) { DEV(d); ARG(mw); NOMIG(); LOCK(); *mw = avg_mw(g, NOW()); UNLOCK(); return OK; }
EXPORT ret_t nvmlDeviceGetTotalEnergyConsumption(void *d, unsigned long long *mj) {
  DEV(d); ARG(mj); NOMIG(); if (!g->has_energy) return E_NOTSUP; LOCK(); *mj = counter_mj(g, NOW()); UNLOCK(); return OK;
}
EXPORT ret_t nvmlDeviceGetPowerManagementMode(void *d, unsigned *m) { DEV(d); ARG(m); NOMIG(); *m = 1; return OK; }
EXPORT ret_t nvmlDeviceGetPowerManagementLimit(void *d, unsigned *m) { DEV(d); ARG(m); NOMIG(); *m = (unsigned)llround(g->limit_w * 1000); return OK; }
EXPORT ret_t nvmlDeviceGetEnforcedPowerLimit(void *d, unsigned *m) { DEV(d); ARG(m); NOMIG(); *m = (unsigned)llround(g->limit_w * 1000); return OK; }
EXPORT ret_t nvmlDeviceGetPowerManagementDefaultLimit(void *d, unsigned *m) { DEV(d); ARG(m); NOMIG(); *m = (unsigned)llround(g->default_w * 1000); return OK; }
EXPORT ret_t nvmlDeviceGetPowerManagementLimitConstraints(void *d, unsigned *a, unsigned *b) { DEV(d); ARG(a && b); NOMIG(); *a = (unsigned)llround(g->min_w * 1000); *b = (unsigned)llround(g->max_w * 1000); return OK; }
EXPORT ret_t nvmlDeviceSetPowerManagementLimit(void *d, unsigned mw) {
  DEV(d); NOMIG(); if (geteuid() != 0) return E_PERM; if (mw < g->min_w * 1000 - .5 || mw > g->max_w * 1000 + .5) return E_ARG; g->limit_w = mw / 1e3; return OK;
}
EXPORT ret_t nvmlDeviceGetFieldValues(void *d, int n, field_t *v) {
  DEV(d); ARG(n > 0 && v); LOCK();
  for (int i = 0; i < n; i++) {
    int64_t ns = now_ns(); double t = rel(ns), tk = t; field_t *f = &v[i]; f->ts = ns / 1000; f->lat = 0; f->ret = OK; f->vtype = VT_UINT; f->v.ull = 0;
    char nm[24]; snprintf(nm, sizeof nm, "FI:%u", f->field);
    if (S.n_f) { UNLOCK(); ret_t r = faults(nm, g->index); LOCK(); if (r) { f->ret = r; continue; } }
    if (g->is_mig) { f->ret = E_NOTSUP; continue; }
    unsigned sc = f->scope; double k = 1; int module = 0;
    if (f->field >= 185 && f->field <= 192) {
      if (!g->has_field_power) { f->ret = E_NOTSUP; continue; }
      if (sc == 1) { if (g->scope_module_w < 0) { f->ret = E_NOTSUP; continue; } module = 1; }
      else if (sc == 2) { if (g->scope_memory_frac < 0) { f->ret = E_NOTSUP; continue; } k = g->scope_memory_frac; }
      else if (sc != 0) { f->ret = E_NOTSUP; continue; }
    }
    switch (f->field) {
    case 83: if (!g->has_energy) f->ret = E_NOTSUP; else { f->vtype = VT_ULL; f->v.ull = counter_mj(g, t); tk = tick_of(t, g->energy_update, g->energy_phase); } break;
    case 185: f->v.ui = module ? module_mw(g, t, 1, NULL) : (unsigned)llround((avg_mw(g, t)) * k); tk = tick_of(t, g->avg_update, g->phase); break;
    case 186: f->v.ui = module ? module_mw(g, t, 0, &tk) : (unsigned)llround((inst_mw(g, t, &tk)) * k); break;
    case 187: f->v.ui = (unsigned)(g->min_w * 1000); break; case 188: f->v.ui = (unsigned)(g->max_w * 1000); break;
    case 189: f->v.ui = (unsigned)(g->default_w * 1000); break; case 190: case 192: f->v.ui = (unsigned)(g->limit_w * 1000); break;
    case 82: f->v.ui = g->temp + 8; break;
    default: f->ret = E_NOTSUP;
    }
    if (f->ret == OK && g->fv_ts_tick) f->ts = (S.epoch + (int64_t)llround(tk * 1e9)) / 1000;
  }
  UNLOCK(); return OK;
}
EXPORT ret_t nvmlDeviceGetSamples(void *d, unsigned type, unsigned long long last, unsigned *vt, unsigned *n, sample_t *s) {
  DEV(d); ARG(n && vt); NOMIG(); if (type > 1 && (type != 7 || g->scope_module_w < 0)) return E_NOTSUP; *vt = VT_UINT;
  LOCK(); double t = NOW(), u = g->sample_period > 0 ? g->sample_period : .02, end = tick_of(t, u, g->phase); int k = 0, room = s ? (int)*n : 0;
  for (int i = g->sample_buf - 1; i >= 0; i--) {
    double x = end - i * u; unsigned long long us = (unsigned long long)((S.epoch + (int64_t)llround(x * 1e9)) / 1000); if (us <= last) continue;
    if (s) { if (k >= room) break; s[k].ts = us; s[k].v.ull = 0;
      if (type == 7) s[k].v.ui = module_mw(g, x, 0, NULL); else if (type == 0) s[k].v.ui = to_mw(g, sensor_w(g, x + 1e-9, u, u, NULL)); else { util_t q; utilization(g, x, &q); s[k].v.ui = q.gpu; } }
    k++;
  }
  UNLOCK(); if (!k) return E_NOTFOUND; *n = k; return OK;
}

/* ---- the rest ---------------------------------------------------------------------------------------- */
EXPORT ret_t nvmlDeviceGetUtilizationRates(void *d, util_t *u) { DEV(d); ARG(u); NOMIG(); LOCK(); utilization(g, NOW(), u); UNLOCK(); return OK; }
EXPORT ret_t nvmlDeviceGetEncoderUtilization(void *d, unsigned *u, unsigned *p) { DEV(d); ARG(u && p); *u = 0; *p = 167000; return OK; }
EXPORT ret_t nvmlDeviceGetDecoderUtilization(void *d, unsigned *u, unsigned *p) { DEV(d); ARG(u && p); *u = 0; *p = 167000; return OK; }
EXPORT ret_t nvmlDeviceGetMemoryInfo(void *d, mem1_t *m) { DEV(d); ARG(m); if (g->mem_unsupported) return E_NOTSUP; m->total = g->mem_total; m->used = g->mem_used; m->free = g->mem_total - g->mem_used; return OK; }
EXPORT ret_t nvmlDeviceGetMemoryInfo_v2(void *d, mem2_t *m) {
  DEV(d); ARG(m); if (g->mem_unsupported) return E_NOTSUP; if (m->version != (sizeof(mem2_t) | 2u << 24)) return E_VERSION;
  m->total = g->mem_total; m->reserved = 400ull << 20; m->used = g->mem_used; m->free = g->mem_total - g->mem_used - m->reserved; return OK;
}
EXPORT ret_t nvmlDeviceGetBAR1MemoryInfo(void *d, mem1_t *m) { DEV(d); ARG(m); m->total = 128ull << 30; m->used = 1 << 20; m->free = m->total - m->used; return OK; }
EXPORT ret_t nvmlDeviceGetTemperature(void *d, unsigned s, unsigned *t) { DEV(d); ARG(t); NOMIG(); if (s) return E_ARG; *t = g->temp; return OK; }
EXPORT ret_t nvmlDeviceGetTemperatureV(void *d, unsigned *p) { DEV(d); ARG(p); NOMIG(); if (p[0] != (12u | 1u << 24)) return E_VERSION; if (p[1]) return E_ARG; ((int *)p)[2] = (int)g->temp; return OK; }
static unsigned clk(gpu_t *g, unsigned t, int mx) { return t == 2 ? (mx ? g->max_mem : g->mem_clock) : t == 3 ? 1545 : (mx ? g->max_sm : g->sm_clock); }
EXPORT ret_t nvmlDeviceGetClockInfo(void *d, unsigned t, unsigned *c) { DEV(d); ARG(c && t < 4); NOMIG(); *c = clk(g, t, 0); return OK; }
EXPORT ret_t nvmlDeviceGetMaxClockInfo(void *d, unsigned t, unsigned *c) { DEV(d); ARG(c && t < 4); NOMIG(); *c = clk(g, t, 1); return OK; }
EXPORT ret_t nvmlDeviceGetClock(void *d, unsigned t, unsigned id, unsigned *c) { DEV(d); ARG(c && t < 4); NOMIG(); *c = clk(g, t, id != 0); return OK; }
EXPORT ret_t nvmlDeviceGetPowerState(void *d, unsigned *p) { DEV(d); ARG(p); NOMIG(); *p = g->pstate; return OK; }
EXPORT ret_t nvmlDeviceGetPerformanceState(void *d, unsigned *p) { DEV(d); ARG(p); NOMIG(); *p = g->pstate; return OK; }
static unsigned long long reasons(gpu_t *g) {
  unsigned long long r = g->throttle; if (g->throttle_power) { LOCK(); double w = sensor_w(g, NOW(), g->inst_update, g->inst_window, NULL); UNLOCK(); if (w > g->limit_w * .99) r |= 4; if (w < g->busy_w) r |= 1; } return r;
}
EXPORT ret_t nvmlDeviceGetCurrentClocksThrottleReasons(void *d, unsigned long long *r) { DEV(d); ARG(r); NOMIG(); *r = reasons(g); return OK; }
EXPORT ret_t nvmlDeviceGetCurrentClocksEventReasons(void *d, unsigned long long *r) { DEV(d); ARG(r); NOMIG(); *r = reasons(g); return OK; }
EXPORT ret_t nvmlDeviceGetSupportedClocksThrottleReasons(void *d, unsigned long long *r) { DEV(d); ARG(r); NOMIG(); *r = 0x1ff; return OK; }
EXPORT ret_t nvmlDeviceGetSupportedClocksEventReasons(void *d, unsigned long long *r) { DEV(d); ARG(r); NOMIG(); *r = 0x1ff; return OK; }
EXPORT ret_t nvmlDeviceGetViolationStatus(void *d, unsigned p, viol_t *v) { DEV(d); ARG(v); (void)p; NOMIG(); v->reference = now_ns() / 1000; v->violation = 0; return OK; }
EXPORT ret_t nvmlDeviceGetFanSpeed(void *d, unsigned *s) { DEV(d); ARG(s); (void)g; return E_NOTSUP; }
EXPORT ret_t nvmlDeviceGetNumFans(void *d, unsigned *s) { DEV(d); ARG(s); *s = 0; return OK; }
EXPORT ret_t nvmlDeviceGetEccMode(void *d, unsigned *a, unsigned *b) { DEV(d); ARG(a && b); *a = *b = 1; return OK; }
EXPORT ret_t nvmlDeviceGetTotalEccErrors(void *d, unsigned e, unsigned c, unsigned long long *n) { DEV(d); ARG(n); (void)e; (void)c; *n = 0; return OK; }
EXPORT ret_t nvmlDeviceGetCurrPcieLinkGeneration(void *d, unsigned *n) { DEV(d); ARG(n); NOMIG(); *n = 5; return OK; }
EXPORT ret_t nvmlDeviceGetCurrPcieLinkWidth(void *d, unsigned *n) { DEV(d); ARG(n); NOMIG(); *n = 16; return OK; }
EXPORT ret_t nvmlDeviceGetPcieThroughput(void *d, unsigned c, unsigned *n) { DEV(d); ARG(n); (void)c; NOMIG(); *n = 0; return OK; }

static unsigned pid_of(const sproc_t *p) { return p->pid ? p->pid : (unsigned)getpid(); }
static ret_t procs(gpu_t *g, unsigned *n, void *out, char type, int v) {
  if (!n) return E_ARG;
  unsigned k = 0, room = *n; for (int i = 0; i < g->n_proc; i++) k += g->proc[i].type == type;
  if (!k) { *n = 0; return OK; }
  if (!out || room < k) { *n = k; return E_SIZE; }
  unsigned j = 0; for (int i = 0; i < g->n_proc; i++) if (g->proc[i].type == type) {
    if (v == 1) { proc1_t *o = (proc1_t *)out + j++; o->pid = pid_of(&g->proc[i]); o->mem = g->proc[i].mem; }
    else { proc_t *o = (proc_t *)out + j++; o->pid = pid_of(&g->proc[i]); o->mem = g->proc[i].mem; o->gi = o->ci = 0xffffffffu; } }
  *n = k; return OK;
}
EXPORT ret_t nvmlDeviceGetComputeRunningProcesses_v3(void *d, unsigned *n, void *p) { DEV(d); return procs(g, n, p, 'C', 3); }
EXPORT ret_t nvmlDeviceGetComputeRunningProcesses_v2(void *d, unsigned *n, void *p) { DEV(d); return procs(g, n, p, 'C', 2); }
EXPORT ret_t nvmlDeviceGetComputeRunningProcesses(void *d, unsigned *n, void *p) { DEV(d); return procs(g, n, p, 'C', 1); }
EXPORT ret_t nvmlDeviceGetGraphicsRunningProcesses_v3(void *d, unsigned *n, void *p) { DEV(d); return procs(g, n, p, 'G', 3); }
EXPORT ret_t nvmlDeviceGetGraphicsRunningProcesses_v2(void *d, unsigned *n, void *p) { DEV(d); return procs(g, n, p, 'G', 2); }
EXPORT ret_t nvmlDeviceGetGraphicsRunningProcesses(void *d, unsigned *n, void *p) { DEV(d); return procs(g, n, p, 'G', 1); }
EXPORT ret_t nvmlDeviceGetMPSComputeRunningProcesses_v3(void *d, unsigned *n, void *p) { DEV(d); return procs(g, n, p, 'M', 3); }
EXPORT ret_t nvmlDeviceGetProcessUtilization(void *d, procutil_t *u, unsigned *n, unsigned long long last) {
  DEV(d); ARG(n); NOMIG(); (void)last; if (!g->n_proc) return E_NOTFOUND;
  if (!u || *n < (unsigned)g->n_proc) { *n = g->n_proc; return E_SIZE; }
  for (int i = 0; i < g->n_proc; i++) { memset(&u[i], 0, sizeof *u); u[i].pid = pid_of(&g->proc[i]); u[i].ts = now_ns() / 1000; u[i].sm = g->proc[i].sm; u[i].mem = g->proc[i].sm / 2; }
  *n = g->n_proc; return OK;
}
EXPORT ret_t nvmlDeviceGetMigMode(void *d, unsigned *c, unsigned *p) { DEV(d); ARG(c && p); if (g->arch < 7 || !strcmp(g->arch_s, "ampere") || !strcmp(g->arch_s, "ada")) return E_NOTSUP; *c = *p = g->mig_mode; return OK; }
EXPORT ret_t nvmlDeviceGetMaxMigDeviceCount(void *d, unsigned *n) { DEV(d); ARG(n); *n = g->arch < 7 || !strcmp(g->arch_s, "ampere") || !strcmp(g->arch_s, "ada") ? 0 : 7; return OK; }
EXPORT ret_t nvmlDeviceGetMigDeviceHandleByIndex(void *d, unsigned i, void **h) { DEV(d); ARG(h); if (!g->mig_mode) return E_NOTSUP; if (i >= (unsigned)g->n_mig) return E_NOTFOUND; *h = &g->mig[i]; return OK; }
EXPORT ret_t nvmlDeviceIsMigDeviceHandle(void *d, unsigned *y) { DEV(d); ARG(y); *y = g->is_mig; return OK; }
EXPORT ret_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *d, void **h) { DEV(d); ARG(h && g->is_mig); *h = g->parent; return OK; }
EXPORT ret_t nvmlDeviceGetGpuInstanceId(void *d, unsigned *i) { DEV(d); ARG(i); if (!g->is_mig) return E_NOTSUP; *i = g->mig_gi; return OK; }
EXPORT ret_t nvmlDeviceGetComputeInstanceId(void *d, unsigned *i) { DEV(d); ARG(i); if (!g->is_mig) return E_NOTSUP; *i = 0; return OK; }
EXPORT ret_t nvmlDeviceGetCpuAffinity(void *d, unsigned n, unsigned long *set) {
  DEV(d); ARG(n && set); if (g->module < 0) return E_NOTSUP; memset(set, 0, n * sizeof *set);
  set[0] = 0xfful << (8 * (g->module % 8)); return OK;
}
/* seldom used, but callers want an answer rather than a missing symbol */
EXPORT ret_t nvmlDeviceGetBoardId(void *d, unsigned *b) { DEV(d); ARG(b); *b = g->pci_bus << 8; return OK; }
EXPORT ret_t nvmlDeviceGetMemoryBusWidth(void *d, unsigned *w) { DEV(d); ARG(w); *w = 5120; return OK; }
EXPORT ret_t nvmlDeviceGetVirtualizationMode(void *d, unsigned *m) { DEV(d); ARG(m); *m = 0; return OK; }
EXPORT ret_t nvmlDeviceGetDriverModel_v2(void *d, unsigned *a, unsigned *b) { DEV(d); ARG(a && b); (void)g; return E_NOTSUP; }
EXPORT ret_t nvmlDeviceGetDriverModel(void *d, unsigned *a, unsigned *b) { return nvmlDeviceGetDriverModel_v2(d, a, b); }
EXPORT ret_t nvmlDeviceGetConfComputeMemSizeInfo(void *d, void *m) { DEV(d); ARG(m); (void)g; return E_NOTSUP; }
EXPORT ret_t nvmlDeviceGetSupportedMemoryClocks(void *d, unsigned *n, unsigned *c) { DEV(d); ARG(n); if (!c || !*n) { *n = 1; return E_SIZE; } *n = 1; c[0] = g->max_mem; return OK; }
EXPORT ret_t nvmlDeviceGetSupportedGraphicsClocks(void *d, unsigned m, unsigned *n, unsigned *c) { DEV(d); ARG(n); (void)m; if (!c || *n < 2) { *n = 2; return E_SIZE; } *n = 2; c[0] = g->max_sm; c[1] = 345; return OK; }
