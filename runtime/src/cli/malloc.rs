//! How much the C library's allocator keeps. RocksDB, librdkafka and Rust share it.

use std::thread::available_parallelism;

use libc::c_int;

/// glibc gives threads up to eight arenas a core, none of which takes what was freed in another: of the bytes that a
/// node held, a fifth was free and in the wrong one (docs/performance.md). One a core is enough for as many threads as
/// can run.
///
/// Called before there are threads. `MALLOC_ARENA_MAX` and `GLIBC_TUNABLES` in the environment say otherwise.
pub fn bound_arenas() {
    if ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"].iter().any(|name| std::env::var_os(name).is_some()) {
        return;
    }
    let cores = available_parallelism().map_or(2, |cores| cores.get().max(2));
    // SAFETY: sets a parameter of the allocator; what it takes over are two integers. Where it is refused (0) nothing
    // has changed.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, c_int::try_from(cores).unwrap_or(c_int::MAX)) };
}
