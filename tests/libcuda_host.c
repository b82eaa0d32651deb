// A libcuda.so.1 on the host: one device whose memory is this process's and whose streams do at once what they are given.
//
// Here is what Freespace reaches, through PyCUDA and by itself; `unsupported` answers the rest that PyCUDA links against, in
// stubs that are made when this is built. It is as strict as a driver where carelessness would show on a GPU only: calls need a
// current context on their own thread, handles and addresses must be alive, kernels get exactly the parameters they declare,
// what a capture forbids breaks it, and after an illegal access nothing works any more.
//
// A module's image is "HOST KERNELS <path>", naming a library that exports `NAME__run` and `NAME__parameters` (cuda_host.py).
//
//   LIBCUDA_HOST_DEVICES   0: there is no GPU
//   LIBCUDA_HOST_MEMORY    bytes of device memory
//   LIBCUDA_HOST_BUSY      set: another process holds the device
#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    DEVICE_UNAVAILABLE = 46,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    ILLEGAL_STATE = 401,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700,
    CONTEXT_IS_DESTROYED = 709,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_WRONG_THREAD = 908,
};

static const struct {
    int code;
    const char *text;
} MESSAGES[] = {
    {INVALID_VALUE, "invalid argument"},
    {OUT_OF_MEMORY, "out of memory"},
    {DEVICE_UNAVAILABLE, "CUDA-capable device(s) is/are busy or unavailable"},
    {NO_DEVICE, "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "invalid device ordinal"},
    {INVALID_IMAGE, "device kernel image is invalid"},
    {INVALID_CONTEXT, "invalid device context"},
    {INVALID_HANDLE, "invalid resource handle"},
    {NOT_FOUND, "named symbol not found"},
    {ILLEGAL_ADDRESS, "an illegal memory access was encountered"},
    {CONTEXT_IS_DESTROYED, "context is destroyed"},
    {NOT_SUPPORTED, "operation not supported"},
    {CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"},
};

enum { JIT_ERROR_LOG = 5, JIT_ERROR_LOG_BYTES = 6 };                    // options of cuModuleLoadDataEx
enum { LAUNCH_END = 0, LAUNCH_PARAMETERS = 1, LAUNCH_PARAMETERS_SIZE = 2 };  // of cuLaunchKernel
enum { CAPABILITY_MAJOR = 8, CAPABILITY_MINOR = 7, THREADS_PER_BLOCK = 1024, GARBAGE = 0xCD };

// What exists

typedef enum { MEMORY, PINNED, STREAM, EVENT, MODULE, FUNCTION, GRAPH, EXECUTABLE, KINDS } Kind;
static const char *const KIND_NAMES[KINDS] = {"memory", "pinned",   "stream", "event",
                                               "module", "function", "graph",  "executable"};

typedef struct Object {
    struct Object *next;
    Kind kind;
} Object;

typedef struct {
    Object object;
    char *bytes;
    size_t size;
} Memory;

typedef struct {
    Object object;
    void *library;
} Module;

typedef struct {
    Object object;
    const Module *module;
    void (*run)(const unsigned *grid, const unsigned *block, const void *packed);
    const char *(*parameters)(void);  // one letter each: p pointer, i int, f float
} Function;

typedef struct {
    Object object;
    bool recorded;
    struct timespec time;
} Event;

// One thing to do: whatever of the three is set.
typedef struct Work {
    struct Work *next;
    void (*call)(void *user);
    void *user;
    void *to;
    const void *from;
    size_t size;
    Function *function;
    unsigned grid[3], block[3];
    char *packed;
    size_t packed_size;
} Work;

typedef struct {
    Object object;
    Work *first, *last;
} Graph;

typedef struct {
    Object object;
    Graph *recording;
    pthread_t recorder;
    bool broken;
} Stream;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;  // of the next four, held for a moment and never while work is done
static Object *objects;
static size_t used_bytes;
static int retained, pushed;

static int lost;  // what every call answers since an illegal access
static Stream default_stream;
static _Thread_local int depth;  // of the stack of contexts, which are all the same one
static _Thread_local Stream *capturing;

static void *enrol(Kind kind, size_t size) {
    Object *object = calloc(1, size);
    object->kind = kind;
    pthread_mutex_lock(&lock);
    object->next = objects;
    objects = object;
    pthread_mutex_unlock(&lock);
    return object;
}

static bool strike(Kind kind, const void *pointer) {
    pthread_mutex_lock(&lock);
    Object **link = &objects;
    while (*link && !(*link == pointer && (*link)->kind == kind)) link = &(*link)->next;
    bool found = *link;
    if (found) *link = (*link)->next;
    pthread_mutex_unlock(&lock);
    return found;
}

static bool alive(Kind kind, const void *pointer) {
    pthread_mutex_lock(&lock);
    const Object *object = objects;
    while (object && !(object == pointer && object->kind == kind)) object = object->next;
    pthread_mutex_unlock(&lock);
    return object;
}

// The block of memory that holds all of a range, or NULL.
static Memory *memory_at(Kind kind, uintptr_t address, size_t size) {
    pthread_mutex_lock(&lock);
    Object *object = objects;
    for (; object; object = object->next) {
        const Memory *memory = (Memory *)object;
        if (object->kind == kind && (uintptr_t)memory->bytes <= address &&
            address + size <= (uintptr_t)memory->bytes + memory->size)
            break;
    }
    pthread_mutex_unlock(&lock);
    return (Memory *)object;
}

static Stream *stream_of(void *handle) {
    return !handle ? &default_stream : alive(STREAM, handle) ? handle : NULL;
}

// How many there are of a kind; also "retained", holds on the primary context, and "pushed", over the stacks of all threads.
int libcuda_host_live(const char *kind) {
    pthread_mutex_lock(&lock);
    int count = !strcmp(kind, "retained") ? retained : !strcmp(kind, "pushed") ? pushed : 0;
    for (const Object *object = objects; object; object = object->next) count += !strcmp(KIND_NAMES[object->kind], kind);
    pthread_mutex_unlock(&lock);
    return count;
}

int unsupported(const char *name) {
    fprintf(stderr, "libcuda_host: %s is not there\n", name);
    return NOT_SUPPORTED;
}

// The device and its primary context

static size_t memory_limit(void) {
    const char *limit = getenv("LIBCUDA_HOST_MEMORY");
    return limit ? strtoull(limit, NULL, 10) : (size_t)1 << 30;
}

static int device_count(void) {
    const char *count = getenv("LIBCUDA_HOST_DEVICES");
    return count ? atoi(count) : 1;
}

static int context_state(void) {
    if (!depth) return INVALID_CONTEXT;
    return retained ? lost : CONTEXT_IS_DESTROYED;
}

#define IN_CONTEXT                         \
    do {                                   \
        int state = context_state();       \
        if (state != SUCCESS) return state; \
    } while (0)

// For calls that may not happen on a thread that captures: they break the capture.
#define NOT_IN_CAPTURE                 \
    do {                               \
        IN_CONTEXT;                    \
        if (capturing) {               \
            capturing->broken = true;  \
            return CAPTURE_UNSUPPORTED; \
        }                              \
    } while (0)

int cuInit(unsigned flags) {
    return flags ? INVALID_VALUE : device_count() ? SUCCESS : NO_DEVICE;
}

int cuDeviceGetCount(int *count) {
    *count = device_count();
    return SUCCESS;
}

int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return ordinal >= 0 && ordinal < device_count() ? SUCCESS : INVALID_DEVICE;
}

int cuDeviceGetName(char *name, int size, int device) {
    (void)device;
    snprintf(name, size, "Host");
    return SUCCESS;
}

int cuDeviceComputeCapability(int *major, int *minor, int device) {
    (void)device;
    *major = CAPABILITY_MAJOR;
    *minor = CAPABILITY_MINOR;
    return SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    if (attribute != 16) return NOT_SUPPORTED;  // all but the number of multiprocessors
    *value = 8;
    return 0;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    (void)device;
    if (getenv("LIBCUDA_HOST_BUSY")) return DEVICE_UNAVAILABLE;
    pthread_mutex_lock(&lock);
    ++retained;
    pthread_mutex_unlock(&lock);
    *context = &retained;
    return SUCCESS;
}

int cuDevicePrimaryCtxRelease_v2(int device) {  // leaves the stacks of all threads as they are, as the real one does
    (void)device;
    pthread_mutex_lock(&lock);
    bool held = retained > 0;
    retained -= held;
    pthread_mutex_unlock(&lock);
    return held ? SUCCESS : INVALID_CONTEXT;
}

static void count_pushed(int change) {
    pthread_mutex_lock(&lock);
    pushed += change;
    pthread_mutex_unlock(&lock);
}

int cuCtxPushCurrent_v2(void *context) {
    if (context != &retained || !retained) return INVALID_CONTEXT;
    ++depth;
    count_pushed(1);
    return SUCCESS;
}

int cuCtxPopCurrent_v2(void **context) {
    if (!depth) return INVALID_CONTEXT;
    --depth;
    if (context) *context = &retained;
    count_pushed(-1);
    return SUCCESS;
}

int cuCtxGetCurrent(void **context) {
    *context = depth ? &retained : NULL;
    return SUCCESS;
}

int cuCtxSynchronize(void) {
    NOT_IN_CAPTURE;
    return SUCCESS;
}

int cuGetErrorString(int code, const char **text) {
    *text = "unknown error";
    for (size_t i = 0; i < sizeof MESSAGES / sizeof *MESSAGES; ++i)
        if (MESSAGES[i].code == code) *text = MESSAGES[i].text;
    return SUCCESS;
}

// Memory

static int take(Kind kind, void **address, size_t size) {
    char *bytes = size ? aligned_alloc(256, (size + 255) / 256 * 256) : NULL;
    if (!bytes) return size ? OUT_OF_MEMORY : INVALID_VALUE;
    memset(bytes, GARBAGE, size);
    Memory *memory = enrol(kind, sizeof *memory);
    pthread_mutex_lock(&lock);
    memory->bytes = bytes;
    memory->size = size;
    pthread_mutex_unlock(&lock);
    *address = bytes;
    return SUCCESS;
}

static int give_up(Kind kind, void *address) {
    Memory *memory = memory_at(kind, (uintptr_t)address, 1);
    if (!memory || memory->bytes != address || !strike(kind, memory)) return INVALID_VALUE;
    free(memory->bytes);
    free(memory);
    return SUCCESS;
}

int cuMemAlloc_v2(void **address, size_t size) {
    NOT_IN_CAPTURE;
    pthread_mutex_lock(&lock);
    bool fits = used_bytes + size <= memory_limit();
    if (fits) used_bytes += size;
    pthread_mutex_unlock(&lock);
    return fits ? take(MEMORY, address, size) : OUT_OF_MEMORY;
}

int cuMemFree_v2(void *address) {
    NOT_IN_CAPTURE;
    const Memory *memory = memory_at(MEMORY, (uintptr_t)address, 1);
    size_t size = memory ? memory->size : 0;
    int code = give_up(MEMORY, address);
    if (code == SUCCESS) {
        pthread_mutex_lock(&lock);
        used_bytes -= size;
        pthread_mutex_unlock(&lock);
    }
    return code;
}

int cuMemGetInfo_v2(size_t *unused, size_t *total) {
    IN_CONTEXT;
    *total = memory_limit();
    *unused = *total - used_bytes;
    return SUCCESS;
}

int cuMemHostAlloc(void **address, size_t size, unsigned flags) {
    (void)flags;
    NOT_IN_CAPTURE;
    return take(PINNED, address, size);
}

int cuMemFreeHost(void *address) {
    NOT_IN_CAPTURE;
    return give_up(PINNED, address);
}

// Work

// Where a parameter ends that comes after others which end at `offset`: each is aligned to its own size.
static size_t end_of_parameter(size_t offset, char letter) {
    size_t size = letter == 'p' ? sizeof(void *) : sizeof(int);
    return (offset + size - 1) / size * size + size;
}

static int perform(const Work *work) {
    if (lost) return lost;
    if (work->call) work->call(work->user);
    if (work->size) memcpy(work->to, work->from, work->size);
    if (!work->function) return SUCCESS;
    size_t end = 0;
    for (const char *letter = work->function->parameters(); *letter; ++letter) {
        end = end_of_parameter(end, *letter);
        uintptr_t address = 0;
        if (*letter == 'p') memcpy(&address, work->packed + end - sizeof address, sizeof address);
        if (address && !memory_at(MEMORY, address, 1)) return lost = ILLEGAL_ADDRESS;
    }
    work->function->run(work->grid, work->block, work->packed);
    return SUCCESS;
}

static void append(Graph *graph, const Work *work) {
    Work *copy = malloc(sizeof *copy);
    *copy = *work;
    copy->next = NULL;
    if (work->packed) copy->packed = memcpy(malloc(work->packed_size), work->packed, work->packed_size);
    if (graph->last) graph->last->next = copy;
    else graph->first = copy;
    graph->last = copy;
}

static int drop(Kind kind, Graph *graph) {
    if (!strike(kind, graph)) return INVALID_HANDLE;
    for (Work *work = graph->first, *next; work; work = next) {
        next = work->next;
        free(work->packed);
        free(work);
    }
    free(graph);
    return SUCCESS;
}

static int submit(void *handle, const Work *work) {
    IN_CONTEXT;
    Stream *stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    if (!stream->recording) return perform(work);
    append(stream->recording, work);
    return SUCCESS;
}

int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t size, void *stream) {
    if (size && !memory_at(MEMORY, (uintptr_t)to, size)) return INVALID_VALUE;
    return submit(stream, &(Work){.to = to, .from = from, .size = size});
}

int cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t size, void *stream) {
    if (size && !memory_at(MEMORY, (uintptr_t)from, size)) return INVALID_VALUE;
    return submit(stream, &(Work){.to = to, .from = from, .size = size});
}

int cuLaunchHostFunc(void *stream, void (*call)(void *), void *user) {
    return submit(stream, &(Work){.call = call, .user = user});
}

int cuLaunchKernel(Function *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared, void *stream, void **one_by_one, void **extra) {
    if (!alive(FUNCTION, function)) return INVALID_HANDLE;
    if (one_by_one || !extra) return unsupported("cuLaunchKernel with parameters one by one");
    if (!grid_x || !grid_y || !grid_z || !block_x || !block_y || !block_z || shared) return INVALID_VALUE;
    if ((uint64_t)block_x * block_y * block_z > THREADS_PER_BLOCK) return INVALID_VALUE;
    Work work = {.function = function, .grid = {grid_x, grid_y, grid_z}, .block = {block_x, block_y, block_z}};
    for (; (uintptr_t)*extra != LAUNCH_END; extra += 2) {
        if ((uintptr_t)*extra == LAUNCH_PARAMETERS) work.packed = extra[1];
        if ((uintptr_t)*extra == LAUNCH_PARAMETERS_SIZE) work.packed_size = *(size_t *)extra[1];
    }
    size_t wanted = 0;
    for (const char *letter = function->parameters(); *letter; ++letter) wanted = end_of_parameter(wanted, *letter);
    if (!work.packed || work.packed_size != wanted) return INVALID_VALUE;
    return submit(stream, &work);
}

// Streams and events

int cuStreamCreate(Stream **stream, unsigned flags) {
    (void)flags;
    IN_CONTEXT;
    *stream = enrol(STREAM, sizeof **stream);
    return SUCCESS;
}

int cuStreamDestroy_v2(Stream *stream) {
    IN_CONTEXT;
    if (!strike(STREAM, stream)) return INVALID_HANDLE;
    free(stream);
    return SUCCESS;
}

int cuStreamSynchronize(void *handle) {
    IN_CONTEXT;
    Stream *stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    if (!stream->recording) return SUCCESS;
    stream->broken = true;
    return CAPTURE_UNSUPPORTED;
}

int cuEventCreate(Event **event, unsigned flags) {
    (void)flags;
    IN_CONTEXT;
    *event = enrol(EVENT, sizeof **event);
    return SUCCESS;
}

int cuEventDestroy_v2(Event *event) {
    IN_CONTEXT;
    if (!strike(EVENT, event)) return INVALID_HANDLE;
    free(event);
    return SUCCESS;
}

int cuEventRecord(Event *event, void *handle) {
    IN_CONTEXT;
    const Stream *stream = stream_of(handle);
    if (!stream || !alive(EVENT, event)) return INVALID_HANDLE;
    event->recorded = !stream->recording;
    clock_gettime(CLOCK_MONOTONIC, &event->time);
    return SUCCESS;
}

int cuStreamWaitEvent(void *stream, Event *event, unsigned flags) {
    (void)flags;
    IN_CONTEXT;
    return stream_of(stream) && alive(EVENT, event) ? SUCCESS : INVALID_HANDLE;
}

int cuEventSynchronize(Event *event) {
    IN_CONTEXT;
    return alive(EVENT, event) ? SUCCESS : INVALID_HANDLE;
}

int cuEventElapsedTime_v2(float *ms, Event *start, Event *end) {
    IN_CONTEXT;
    if (!alive(EVENT, start) || !alive(EVENT, end) || !start->recorded || !end->recorded) return INVALID_HANDLE;
    *ms = (end->time.tv_sec - start->time.tv_sec) * 1e3 + (end->time.tv_nsec - start->time.tv_nsec) / 1e6;
    return SUCCESS;
}

int cuEventElapsedTime(float *ms, Event *start, Event *end) {  // before CUDA 13
    return cuEventElapsedTime_v2(ms, start, end);
}

// Modules

int cuModuleLoadDataEx(Module **module, const char *image, unsigned count, const int *options, void **values) {
    static const char MAGIC[] = "HOST KERNELS ";
    NOT_IN_CAPTURE;
    void *library = strncmp(image, MAGIC, sizeof MAGIC - 1) ? NULL : dlopen(image + sizeof MAGIC - 1, RTLD_NOW);
    int written = 0;
    for (unsigned i = 0; i + 1 < count; ++i)
        if (!library && options[i] == JIT_ERROR_LOG && options[i + 1] == JIT_ERROR_LOG_BYTES)
            written = snprintf(values[i], (size_t)values[i + 1], "not the kernels of this host");
    for (unsigned i = 0; i < count; ++i)
        if (options[i] == JIT_ERROR_LOG_BYTES) values[i] = (void *)(uintptr_t)written;
    if (!library) return INVALID_IMAGE;
    *module = enrol(MODULE, sizeof **module);
    (*module)->library = library;
    return SUCCESS;
}

int cuModuleUnload(Module *module) {
    NOT_IN_CAPTURE;
    if (!strike(MODULE, module)) return INVALID_HANDLE;
    for (bool found = true; found;) {  // its functions go with it
        pthread_mutex_lock(&lock);
        Object *object = objects;
        while (object && !(object->kind == FUNCTION && ((Function *)object)->module == module)) object = object->next;
        pthread_mutex_unlock(&lock);
        found = object && strike(FUNCTION, object);
        if (found) free(object);
    }
    dlclose(module->library);
    free(module);
    return SUCCESS;
}

int cuModuleGetFunction(Function **function, Module *module, const char *name) {
    IN_CONTEXT;
    if (!alive(MODULE, module)) return INVALID_HANDLE;
    char symbol[256];
    snprintf(symbol, sizeof symbol, "%s__run", name);
    void *run = dlsym(module->library, symbol);
    snprintf(symbol, sizeof symbol, "%s__parameters", name);
    void *parameters = dlsym(module->library, symbol);
    if (!run || !parameters) return NOT_FOUND;
    *function = enrol(FUNCTION, sizeof **function);
    (*function)->module = module;
    memcpy(&(*function)->run, &run, sizeof run);
    memcpy(&(*function)->parameters, &parameters, sizeof parameters);
    return SUCCESS;
}

int cuFuncSetBlockShape(Function *function, int x, int y, int z) {  // PyCUDA says it here and at the launch once more
    IN_CONTEXT;
    if (!alive(FUNCTION, function)) return INVALID_HANDLE;
    return x > 0 && y > 0 && z > 0 ? SUCCESS : INVALID_VALUE;
}

// Graphs: lists of work

int cuStreamBeginCapture_v2(void *handle, int mode) {
    (void)mode;
    IN_CONTEXT;
    Stream *stream = handle ? stream_of(handle) : NULL;
    if (!stream || stream->recording || capturing) return handle ? ILLEGAL_STATE : CAPTURE_UNSUPPORTED;
    stream->recording = enrol(GRAPH, sizeof(Graph));
    stream->recorder = pthread_self();
    stream->broken = false;
    capturing = stream;
    return SUCCESS;
}

int cuStreamEndCapture(void *handle, Graph **graph) {
    IN_CONTEXT;
    Stream *stream = stream_of(handle);
    if (!stream || !stream->recording) return ILLEGAL_STATE;
    if (!pthread_equal(stream->recorder, pthread_self())) return CAPTURE_WRONG_THREAD;
    *graph = stream->recording;
    stream->recording = NULL;
    capturing = NULL;
    if (!stream->broken) return SUCCESS;
    drop(GRAPH, *graph);
    *graph = NULL;
    return CAPTURE_INVALIDATED;
}

int cuStreamIsCapturing(void *handle, int *status) {
    const Stream *stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    *status = stream->recording != NULL;
    return SUCCESS;
}

int cuGraphInstantiateWithFlags(Graph **executable, Graph *graph, unsigned long long flags) {
    IN_CONTEXT;
    if (!alive(GRAPH, graph)) return INVALID_HANDLE;
    if (flags) return INVALID_VALUE;
    *executable = enrol(EXECUTABLE, sizeof **executable);
    for (const Work *work = graph->first; work; work = work->next) append(*executable, work);
    return SUCCESS;
}

int cuGraphLaunch(Graph *executable, void *stream) {
    IN_CONTEXT;
    if (!alive(EXECUTABLE, executable) || !stream_of(stream)) return INVALID_HANDLE;
    for (const Work *work = executable->first; work; work = work->next) {
        int code = submit(stream, work);
        if (code != SUCCESS) return code;
    }
    return SUCCESS;
}

int cuGraphDestroy(Graph *graph) {
    return drop(GRAPH, graph);
}

int cuGraphExecDestroy(Graph *executable) {
    return drop(EXECUTABLE, executable);
}
