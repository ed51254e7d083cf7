// A recording stand-in for libcudart.so.13. Memory is the host's and full of small numbers, kernels do nothing, every
// call that matters is a line of the log that STANDIN_LOG names. It shows placement, launches, allocations, copies and
// what a capture may not hold; neither arithmetic nor speed.
//
// STANDIN_DEVICES: how many GPUs (1). STANDIN_MEMORY: bytes of each (80 GiB). STANDIN_EMPTY=1: memory stays untouched,
// so that gigabytes of weights take none. All are read once.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Error;
typedef void* Pointer;
typedef size_t Size;
typedef struct { unsigned x, y, z; } Dim3;

enum {
    kOk = 0, kMemory = 2, kNoDevice = 100, kInvalidDevice = 101, kUnsupported = 900, kInvalidated = 901,
};

// the log

static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;

void standin_log(const char* format, ...) {
    static FILE* out;
    va_list arguments;
    va_start(arguments, format);
    pthread_mutex_lock(&log_lock);
    if (!out) {
        const char* name = getenv("STANDIN_LOG");
        out = name ? fopen(name, "a") : stderr;
        setvbuf(out, 0, _IOLBF, 0);
    }
    vfprintf(out, format, arguments);
    fputc('\n', out);
    pthread_mutex_unlock(&log_lock);
    va_end(arguments);
}

static Size number(const char* name, Size otherwise) {
    const char* text = getenv(name);
    return text ? strtoull(text, 0, 10) : otherwise;
}

static int empty(void) {
    static int is = -1;
    if (is < 0) is = (int)number("STANDIN_EMPTY", 0);
    return is;
}
static void move(void* to, const void* from, Size size) {
    if (!empty()) memmove(to, from, size);
}

// devices

#define MOST_DEVICES 8
static __thread int current;
static Size used[MOST_DEVICES];
static Size limit;  // of this moment; 0: STANDIN_MEMORY

static int devices(void) {
    static int count = -1;
    if (count < 0) count = (int)number("STANDIN_DEVICES", 1);
    return count;
}
static Size total(void) {
    static Size bytes;
    if (!bytes) bytes = number("STANDIN_MEMORY", (Size)80 << 30);
    return bytes;
}
// No allocation may take a device's use over so many bytes from here on; 0: no such limit.
void standin_limit(Size bytes) { limit = bytes; }
Size standin_used(int device) { return used[device]; }

Error cudaGetDeviceCount(int* count) { *count = devices(); return devices() ? kOk : kNoDevice; }
Error cudaGetDevice(int* device) { *device = current; return kOk; }
Error cudaSetDevice(int device) {
    if (device < 0 || device >= devices()) return kInvalidDevice;
    current = device;
    return kOk;
}
Error cudaDriverGetVersion(int* version) { *version = 13000; return kOk; }
Error cudaRuntimeGetVersion(int* version) { *version = 13000; return kOk; }

static __thread Error last;
static Error fail(Error error) { last = error; return error; }
Error cudaGetLastError(void) { Error error = last; last = kOk; return error; }
Error cudaPeekAtLastError(void) { return last; }
const char* cudaGetErrorName(Error error) {
    switch (error) {
        case kOk: return "cudaSuccess";
        case kMemory: return "cudaErrorMemoryAllocation";
        case kNoDevice: return "cudaErrorNoDevice";
        case kInvalidDevice: return "cudaErrorInvalidDevice";
        case kUnsupported: return "cudaErrorStreamCaptureUnsupported";
        case kInvalidated: return "cudaErrorStreamCaptureInvalidated";
        default: return "cudaErrorUnknown";
    }
}
const char* cudaGetErrorString(Error error) { return error == kMemory ? "out of memory" : cudaGetErrorName(error); }

// Places of fields in CUDA 13's cudaDeviceProp, 1008 bytes; values of a Hopper card.
Error cudaGetDeviceProperties(char* properties, int device) {
    static const struct { int at; int64_t value; int size; } fields[] = {
        {296, 49152, 8}, {304, 65536, 4}, {308, 32, 4}, {320, 1024, 4}, {324, 1024, 4}, {328, 1024, 4}, {332, 64, 4},
        {336, 2147483647, 4}, {340, 65535, 4}, {344, 65535, 4}, {352, 65536, 8}, {360, 9, 4}, {364, 0, 4},
        {384, 132, 4}, {596, 50 << 20, 4}, {604, 2048, 4}, {624, 233472, 8}, {632, 65536, 4}, {668, 1, 4},
        {672, 232448, 8}, {688, 32, 4},
    };
    if (device >= devices()) return fail(kInvalidDevice);
    memset(properties, 0, 1008);
    strcpy(properties, "stand-in");
    Size bytes = total();
    memcpy(properties + 288, &bytes, 8);
    for (Size i = 0; i < sizeof fields / sizeof *fields; ++i) memcpy(properties + fields[i].at, &fields[i].value, fields[i].size);
    return kOk;
}
Error cudaDeviceGetAttribute(int* value, int attribute, int device) {
    if (device >= devices()) return fail(kInvalidDevice);
    switch (attribute) {  // cudaDeviceAttr
        case 1: *value = 1024; break;     // threads of a block
        case 8: *value = 49152; break;    // shared memory of a block
        case 10: *value = 32; break;      // warp
        case 16: *value = 132; break;     // multiprocessors
        case 38: *value = 50 << 20; break;
        case 39: *value = 2048; break;
        case 75: *value = 9; break;       // compute capability
        case 76: *value = 0; break;
        case 81: *value = 233472; break;
        case 97: *value = 232448; break;
        default: *value = 1;
    }
    return kOk;
}

// capture: one at a time is enough here

static Pointer capturing;
static pthread_t capturer;
static int invalidated;

static int refused(const char* call) {
    if (!capturing || !pthread_equal(capturer, pthread_self())) return 0;
    standin_log("REFUSED %s", call);
    invalidated = 1;
    return 1;
}
static void given(const char* what, Pointer stream) {
    if (!capturing) return;
    if (stream != capturing && pthread_equal(capturer, pthread_self())) standin_log("OUTSIDE %s", what);
    if (stream == capturing && !pthread_equal(capturer, pthread_self())) standin_log("FOREIGN %s", what);
}

// memory

#define MOST_BLOCKS 65536
static struct { char* at; Size size; int device; } blocks[MOST_BLOCKS];
static int block_count;
static pthread_mutex_t block_lock = PTHREAD_MUTEX_INITIALIZER;

static Error allocate(Pointer* at, Size size) {
    Error error = kMemory;
    pthread_mutex_lock(&block_lock);
    int free_slot = 0;
    while (free_slot < block_count && blocks[free_slot].at) ++free_slot;
    Size most = limit ? limit : total();
    if (used[current] + size <= most && free_slot < MOST_BLOCKS && !posix_memalign(at, 512, size ? size : 1)) {
        blocks[free_slot].at = *at, blocks[free_slot].size = size, blocks[free_slot].device = current;
        if (free_slot == block_count) ++block_count;
        used[current] += size;
        error = kOk;
    }
    pthread_mutex_unlock(&block_lock);
    standin_log(error ? "NOMEMORY %zu" : "MALLOC %zu device=%d", size, current);
    // finite and not constant, so that what no kernel has written is no broken picture
    Size filled = empty() ? 0 : size < (4 << 20) ? size : 4 << 20;
    for (Size i = 0; !error && i < filled / 4; ++i) ((float*)*at)[i] = (float)(i * 2654435761u % 2001) / 1000 - 1;
    return error ? fail(error) : kOk;
}
static void release(Pointer at) {
    pthread_mutex_lock(&block_lock);
    for (int i = 0; i < block_count; ++i)
        if (at && blocks[i].at == at) used[blocks[i].device] -= blocks[i].size, blocks[i].at = 0;
    pthread_mutex_unlock(&block_lock);
    free(at);
}
static void inside(const char* what, const void* at, Size size) {
    const char* place = at;
    pthread_mutex_lock(&block_lock);
    for (int i = 0; i < block_count; ++i)
        if (blocks[i].at && place >= blocks[i].at && place < blocks[i].at + blocks[i].size && place + size > blocks[i].at + blocks[i].size)
            standin_log("BEYOND %s %zu of %zu", what, size, blocks[i].size);
    pthread_mutex_unlock(&block_lock);
}

Error cudaMemGetInfo(Size* free_bytes, Size* all) {
    Size most = limit ? limit : total();
    *all = total();
    *free_bytes = used[current] < most ? most - used[current] : 0;
    return kOk;
}
Error cudaMalloc(Pointer* at, Size size) { return refused("cudaMalloc") ? fail(kUnsupported) : allocate(at, size); }
Error cudaFree(Pointer at) {
    if (refused("cudaFree")) return fail(kUnsupported);
    if (at) standin_log("FREE");
    release(at);
    return kOk;
}
Error cudaFreeAsync(Pointer at, Pointer stream) { return cudaFree(at); }
Error cudaMallocFromPoolAsync(Pointer* at, Size size, Pointer pool, Pointer stream) { return cudaMalloc(at, size); }
Error cudaMallocHost(Pointer* at, Size size) { return posix_memalign(at, 512, size ? size : 1) ? fail(kMemory) : kOk; }
Error cudaHostAlloc(Pointer* at, Size size, unsigned flags) { return cudaMallocHost(at, size); }
Error cudaFreeHost(Pointer at) { free(at); return kOk; }
Error cudaPointerGetAttributes(int* attributes, const void* at) {
    memset(attributes, 0, 64);
    attributes[0] = 2;  // the device's
    return kOk;
}

static const char* const kinds[] = {"H2H", "H2D", "D2H", "D2D", "DEF"};
Error cudaMemcpy(Pointer to, const void* from, Size size, int kind) {
    if (refused("cudaMemcpy")) return fail(kUnsupported);
    standin_log("MEMCPYSYNC %s %zu", kinds[kind], size);
    inside("destination", to, size), inside("source", from, size);
    move(to, from, size);
    return kOk;
}
Error cudaMemcpyAsync(Pointer to, const void* from, Size size, int kind, Pointer stream) {
    given("memcpy", stream);
    standin_log("memcpy %s %zu stream=%p", kinds[kind], size, stream);
    inside("destination", to, size), inside("source", from, size);
    move(to, from, size);
    return kOk;
}
Error cudaMemcpy2DAsync(Pointer to, Size to_pitch, const void* from, Size from_pitch, Size width, Size height, int kind, Pointer stream) {
    given("memcpy2d", stream);
    standin_log("memcpy2d %s %zux%zu stream=%p", kinds[kind], width, height, stream);
    return kOk;
}
Error cudaMemset(Pointer at, int value, Size size) {
    if (refused("cudaMemset")) return fail(kUnsupported);
    standin_log("MEMSETSYNC %zu", size);
    inside("memset", at, size);
    memset(at, value, size);
    return kOk;
}
Error cudaMemsetAsync(Pointer at, int value, Size size, Pointer stream) {
    given("memset", stream);
    standin_log("memset %zu stream=%p", size, stream);
    inside("memset", at, size);
    memset(at, value, size);
    return kOk;
}

// kernels, by the address of their host function

#define MOST_KERNELS 262144
static struct { const void* function; const char* name; } kernels[MOST_KERNELS];
static unsigned slot(const void* function) {
    unsigned i = (unsigned)(((uintptr_t)function >> 3) * 2654435761u) % MOST_KERNELS;
    while (kernels[i].function && kernels[i].function != function) i = (i + 1) % MOST_KERNELS;
    return i;
}
Pointer* __cudaRegisterFatBinary(Pointer binary) { static Pointer handle[4]; return handle; }
void __cudaRegisterFatBinaryEnd(Pointer* handle) {}
void __cudaUnregisterFatBinary(Pointer* handle) {}
void __cudaRegisterVar() {}
void __cudaRegisterFunction(Pointer* handle, const char* host, char* device, const char* name) {
    unsigned i = slot(host);
    kernels[i].function = host, kernels[i].name = name;
}
static __thread struct { Dim3 grid, block; Size shared; Pointer stream; } pending[16];
static __thread int depth;
unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, Size shared, Pointer stream) {
    pending[depth].grid = grid, pending[depth].block = block, pending[depth].shared = shared, pending[depth].stream = stream;
    ++depth;
    return 0;
}
Error __cudaPopCallConfiguration(Dim3* grid, Dim3* block, Size* shared, Pointer* stream) {
    --depth;
    *grid = pending[depth].grid, *block = pending[depth].block, *shared = pending[depth].shared, *stream = pending[depth].stream;
    return kOk;
}
Error __cudaGetKernel(Pointer* kernel, const void* function) { *kernel = (Pointer)function; return kOk; }
static Error launch(const void* function, Pointer stream) {
    const char* name = kernels[slot(function)].name;
    given("kernel", stream);
    standin_log("kernel stream=%p device=%d %s", stream, current, name ? name : "?");
    return kOk;
}
Error __cudaLaunchKernel(Pointer kernel, Dim3 grid, Dim3 block, Pointer* arguments, Size shared, Pointer stream) { return launch(kernel, stream); }
Error cudaLaunchKernel(const void* f, Dim3 grid, Dim3 block, Pointer* arguments, Size shared, Pointer stream) { return launch(f, stream); }
Error cudaLaunchCooperativeKernel(const void* f, Dim3 grid, Dim3 block, Pointer* arguments, Size shared, Pointer stream) { return launch(f, stream); }
typedef struct { Dim3 grid, block; Size shared; Pointer stream; } Configuration;
Error cudaLaunchKernelExC(const Configuration* how, const void* function, Pointer* arguments) { return launch(function, how->stream); }
Error cudaLaunchHostFunc(Pointer stream, void (*function)(void*), void* data) {
    given("host function", stream);
    standin_log("HOSTFUNC");
    function(data);
    return kOk;
}
Error cudaFuncGetAttributes(int* attributes, const void* function) {
    memset(attributes, 0, 144);
    attributes[6] = 1024;  // threads of a block
    return kOk;
}
Error cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* count) { *count = 2; return kOk; }
Error cudaGetDriverEntryPointByVersion(const char* name, Pointer* function, unsigned version, unsigned long long flags, int* found) {
    *function = 0;
    if (found) *found = 1;
    return kOk;
}

// streams, events, graphs

static Error handle(Pointer* made) { *made = calloc(1, 64); return kOk; }
Error cudaStreamCreate(Pointer* stream) { handle(stream); standin_log("STREAMCREATE %p", *stream); return kOk; }
Error cudaStreamCreateWithFlags(Pointer* stream, unsigned flags) { return cudaStreamCreate(stream); }
Error cudaStreamDestroy(Pointer stream) { standin_log("STREAMDESTROY %p", stream); return kOk; }
Error cudaStreamSynchronize(Pointer stream) {
    if (capturing && stream == capturing) {
        standin_log("REFUSED cudaStreamSynchronize");
        invalidated = 1;
        return fail(kUnsupported);
    }
    standin_log("STREAMSYNC");
    return kOk;
}
Error cudaDeviceSynchronize(void) {
    if (refused("cudaDeviceSynchronize")) return fail(kUnsupported);
    standin_log("DEVICESYNC");
    return kOk;
}
Error cudaStreamIsCapturing(Pointer stream, int* state) { *state = capturing && stream == capturing; return kOk; }
Error cudaStreamWaitEvent(Pointer stream, Pointer event, unsigned flags) { standin_log("streamwait"); return kOk; }
Error cudaStreamBeginCapture(Pointer stream, int mode) {
    if (capturing) return fail(kUnsupported);
    capturing = stream, capturer = pthread_self(), invalidated = 0;
    standin_log("BEGINCAPTURE mode=%d", mode);
    return kOk;
}
Error cudaStreamEndCapture(Pointer stream, Pointer* graph) {
    capturing = 0, *graph = 0;
    standin_log(invalidated ? "BROKENCAPTURE" : "ENDCAPTURE");
    return invalidated ? fail(kInvalidated) : handle(graph);
}
Error cudaGraphInstantiate(Pointer* executable) { return handle(executable); }
Error cudaGraphLaunch(Pointer executable, Pointer stream) {
    if (refused("cudaGraphLaunch")) return fail(kUnsupported);
    standin_log("GRAPHLAUNCH");
    return kOk;
}
Error cudaGraphDestroy(Pointer graph) { free(graph); return kOk; }
Error cudaGraphExecDestroy(Pointer executable) { standin_log("GRAPHDESTROY"); free(executable); return kOk; }
Error cudaEventCreate(Pointer* event) { return handle(event); }
Error cudaEventCreateWithFlags(Pointer* event, unsigned flags) { return handle(event); }
Error cudaEventRecord(Pointer event, Pointer stream) { standin_log("eventrecord"); return kOk; }
Error cudaEventSynchronize(Pointer event) {
    if (refused("cudaEventSynchronize")) return fail(kUnsupported);
    standin_log("EVENTSYNC");
    return kOk;
}
Error cudaEventElapsedTime(float* ms) { *ms = 1; return kOk; }
