/* Counts live and peak bytes at malloc level, the same way for any program: build with
 *
 *     cc -O2 -shared -fPIC -o libmalloc_counter.so malloc_counter.c
 *
 * and run under LD_PRELOAD. Sizes are what the C library really set aside (malloc_usable_size). The program asks by three functions,
 * found with dlsym or ctypes: all return bytes. Memory from mmap called directly does not count.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);
extern void __libc_free(void*);

static atomic_llong live, peak;

/* Bytes in use now. */
int64_t malloc_counter_live(void) { return atomic_load(&live); }
/* Most bytes in use since the last reset. */
int64_t malloc_counter_peak(void) { return atomic_load(&peak); }
/* Starts the peak anew; returns the bytes in use now. */
int64_t malloc_counter_reset_peak(void) {
  const long long now = atomic_load(&live);
  atomic_store(&peak, now);
  return now;
}

static void* count(void* p) {
  if (p == NULL) return p;
  const long long size = (long long)malloc_usable_size(p);
  const long long now = atomic_fetch_add(&live, size) + size;
  long long seen = atomic_load(&peak);
  while (now > seen && !atomic_compare_exchange_weak(&peak, &seen, now)) {
  }
  return p;
}

void* malloc(size_t n) { return count(__libc_malloc(n)); }
void* calloc(size_t n, size_t size) { return count(__libc_calloc(n, size)); }
void* memalign(size_t alignment, size_t n) { return count(__libc_memalign(alignment, n)); }
void* aligned_alloc(size_t alignment, size_t n) { return count(__libc_memalign(alignment, n)); }
int posix_memalign(void** out, size_t alignment, size_t n) {
  void* p = __libc_memalign(alignment, n);
  if (p == NULL) return ENOMEM;
  *out = count(p);
  return 0;
}

void* realloc(void* p, size_t n) {
  const long long before = p == NULL ? 0 : (long long)malloc_usable_size(p);
  void* moved = __libc_realloc(p, n);
  if (moved == NULL && n != 0) return NULL;
  atomic_fetch_sub(&live, before);
  return count(moved);
}

void free(void* p) {
  if (p == NULL) return;
  atomic_fetch_sub(&live, (long long)malloc_usable_size(p));
  __libc_free(p);
}
