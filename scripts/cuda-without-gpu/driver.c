/* A CUDA driver (libcuda.so.1) for machines without a GPU, to check what comes before a launch: it has one device of
 * the compute capability that PRETENDED_COMPUTE_CAPABILITY says (90 by default). Memory is the host's, and copies are
 * real; modules are accepted as they come, and a launch does nothing. See scripts/check-cuda-kernels. */

#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2 };

static int number(const char *name, int otherwise) {
    const char *value = getenv(name);
    return value && *value ? atoi(value) : otherwise;
}

static int capability(void) { return number("PRETENDED_COMPUTE_CAPABILITY", 90); }
static size_t memory(void) { return (size_t)number("PRETENDED_MEMORY_MIB", 81920) << 20; }
static size_t in_use;

int cuInit(unsigned flags) { return flags; }
int cuDriverGetVersion(int *version) { return *version = number("PRETENDED_DRIVER", 13000), SUCCESS; }
int cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, ordinal ? INVALID_VALUE : SUCCESS; }
int cuDeviceGetName(char *name, int length, int device) {
    (void)device;
    snprintf(name, length, "no GPU (compute capability %d.%d)", capability() / 10, capability() % 10);
    return SUCCESS;
}
int cuDeviceGetPCIBusId(char *id, int length, int device) {
    (void)device;
    snprintf(id, length, "0000:00:00.0");
    return SUCCESS;
}
int cuDeviceGetUuid(char *id, int device) { return (void)device, memset(id, 0, 16), SUCCESS; }
int cuDeviceGetUuid_v2(char *id, int device) { return cuDeviceGetUuid(id, device); }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { return (void)device, *bytes = memory(), SUCCESS; }

/* Those of an H100, as far as CubeCL asks. */
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    switch (attribute) {
    case 1: *value = 1024; break;                /* threads of a block */
    case 2: case 3: *value = 1024; break;        /* block dimensions x, y */
    case 4: *value = 64; break;                  /* z */
    case 5: *value = 2147483647; break;          /* grid dimensions x */
    case 6: case 7: *value = 65535; break;       /* y, z */
    case 8: *value = 49152; break;               /* shared memory of a block */
    case 10: *value = 32; break;                 /* warp */
    case 16: *value = 132; break;                /* multiprocessors */
    case 75: *value = capability() / 10; break;
    case 76: *value = capability() % 10; break;
    case 97: *value = capability() == 80 ? 166912 : 232448; break; /* shared memory that a block may ask for */
    case 115: *value = 1; break;                 /* memory pools */
    default: *value = 0;
    }
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void **context, int device) { return (void)device, *context = &in_use, SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int device) { return (void)device, SUCCESS; }
int cuCtxSetCurrent(void *context) { return (void)context, SUCCESS; }
int cuCtxGetCurrent(void **context) { return *context = &in_use, SUCCESS; }
int cuCtxSynchronize(void) { return SUCCESS; }
int cuCtxGetStreamPriorityRange(int *least, int *greatest) { return *least = 0, *greatest = -5, SUCCESS; }

/* The size is kept in front of a block. Its pages are zeros, which take time and memory when they are touched. */
int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    if (bytes > memory() - in_use) return OUT_OF_MEMORY;
    char *block = mmap(NULL, bytes + 512, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block == MAP_FAILED) return OUT_OF_MEMORY;
    *(size_t *)block = bytes;
    __atomic_add_fetch(&in_use, bytes, __ATOMIC_RELAXED);
    *address = (uint64_t)(block + 512);
    return SUCCESS;
}
int cuMemAllocAsync(uint64_t *address, size_t bytes, void *stream) { return (void)stream, cuMemAlloc_v2(address, bytes); }
int cuMemFree_v2(uint64_t address) {
    char *block = (char *)address - 512;
    size_t bytes = *(size_t *)block;
    __atomic_sub_fetch(&in_use, bytes, __ATOMIC_RELAXED);
    return munmap(block, bytes + 512);
}
int cuMemFreeAsync(uint64_t address, void *stream) { return (void)stream, cuMemFree_v2(address); }
int cuMemGetInfo_v2(size_t *available, size_t *total) { return *total = memory(), *available = memory() - in_use, SUCCESS; }
int cuMemAllocHost_v2(void **address, size_t bytes) { return (*address = malloc(bytes)) ? SUCCESS : OUT_OF_MEMORY; }
int cuMemFreeHost(void *address) { return free(address), SUCCESS; }

int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) { return (void)stream, memcpy((void *)to, from, bytes), SUCCESS; }
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) { return (void)stream, memcpy(to, (void *)from, bytes), SUCCESS; }
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) { return (void)stream, memmove((void *)to, (void *)from, bytes), SUCCESS; }
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *stream) { return (void)stream, memset((void *)to, value, bytes), SUCCESS; }

struct copy {
    size_t from_x, from_y; unsigned from_kind; const char *from_host; uint64_t from_device; void *from_array; size_t from_pitch;
    size_t to_x, to_y; unsigned to_kind; char *to_host; uint64_t to_device; void *to_array; size_t to_pitch;
    size_t width, height;
};
int cuMemcpy2DAsync_v2(const struct copy *copy, void *stream) {
    (void)stream;
    const char *from = copy->from_kind == 1 ? copy->from_host : (const char *)copy->from_device;
    char *to = copy->to_kind == 1 ? copy->to_host : (char *)copy->to_device;
    for (size_t row = 0; row < copy->height; row++)
        memcpy(to + (copy->to_y + row) * copy->to_pitch + copy->to_x,
               from + (copy->from_y + row) * copy->from_pitch + copy->from_x, copy->width);
    return SUCCESS;
}

/* Streams, events, modules and functions are names without anything behind them. */
static uintptr_t names;
static void *name(void) { return (void *)__atomic_add_fetch(&names, 16, __ATOMIC_RELAXED); }
int cuStreamCreate(void **stream, unsigned flags) { return (void)flags, *stream = name(), SUCCESS; }
int cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) { return (void)priority, cuStreamCreate(stream, flags); }
int cuStreamSynchronize(void *stream) { return (void)stream, SUCCESS; }
int cuStreamQuery(void *stream) { return (void)stream, SUCCESS; }
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { return (void)stream, (void)event, (void)flags, SUCCESS; }
int cuStreamDestroy_v2(void *stream) { return (void)stream, SUCCESS; }
int cuEventCreate(void **event, unsigned flags) { return (void)flags, *event = name(), SUCCESS; }
int cuEventRecord(void *event, void *stream) { return (void)event, (void)stream, SUCCESS; }
int cuEventSynchronize(void *event) { return (void)event, SUCCESS; }
int cuEventQuery(void *event) { return (void)event, SUCCESS; }
int cuEventElapsedTime(float *milliseconds, void *start, void *end) { return (void)start, (void)end, *milliseconds = number("PRETENDED_NANOSECONDS", 1000000) * 1e-6f, SUCCESS; }
int cuEventElapsedTime_v2(float *milliseconds, void *start, void *end) { return cuEventElapsedTime(milliseconds, start, end); }
int cuEventDestroy_v2(void *event) { return (void)event, SUCCESS; }
int cuModuleLoadData(void **module, const void *image) { return (void)image, *module = name(), SUCCESS; }
int cuModuleUnload(void *module) { return (void)module, SUCCESS; }
int cuModuleGetFunction(void **function, void *module, const char *named) { return (void)module, (void)named, *function = name(), SUCCESS; }
int cuFuncSetAttribute(void *function, int attribute, int value) { return (void)function, (void)attribute, (void)value, SUCCESS; }
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **parameters, void **extra) {
    (void)function, (void)gx, (void)gy, (void)gz, (void)bx, (void)by, (void)bz, (void)shared, (void)stream, (void)parameters, (void)extra;
    return SUCCESS;
}
int cuTensorMapEncodeTiled(void *map, int type, unsigned rank, void *address, const void *dims, const void *strides,
                           const void *box, const void *element, int interleave, int swizzle, int promotion, int fill) {
    (void)type, (void)rank, (void)address, (void)dims, (void)strides, (void)box, (void)element, (void)interleave,
        (void)swizzle, (void)promotion, (void)fill;
    return memset(map, 0, 128), SUCCESS;
}

/* NVRTC asks for one, and does without. */
int cuGetExportTable(const void **table, const void *id) { return (void)table, (void)id, INVALID_VALUE; }

int cuGetErrorName(int error, const char **text) { return *text = error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR", SUCCESS; }
int cuGetErrorString(int error, const char **text) { return *text = error == OUT_OF_MEMORY ? "out of memory" : "error", SUCCESS; }
