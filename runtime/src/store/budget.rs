//! What all stores of a process share: memory for blocks and write buffers, background threads, and
//! the options that every database is opened with.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use rocksdb::{
    BlockBasedOptions, Cache, CompactionDecision, DB, DBCompressionType, Env, FlushOptions, LogLevel,
    Options, WriteBufferManager, WriteOptions,
};

use super::StoreError;
use super::keys::{inbox_date_ms, is_inbox_key};

/// Bounds on what the stores of one process use together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BudgetConfig {
    /// Uncompressed blocks of all databases.
    pub block_cache_bytes: usize,
    /// Memtables of all databases; a database that writes while they exceed it flushes.
    pub write_buffer_bytes: usize,
    /// Memtable of one database. Small ones are faster to search.
    pub memtable_bytes: usize,
    /// Threads that compact; one more flushes.
    pub compaction_threads: u8,
}

impl Default for BudgetConfig {
    fn default() -> BudgetConfig {
        BudgetConfig {
            block_cache_bytes: 128 << 20,
            write_buffer_bytes: 128 << 20,
            memtable_bytes: 16 << 20,
            compaction_threads: 1,
        }
    }
}

/// A memtable's allocation unit. RocksDB's own choice (an eighth of the memtable) would make a
/// thousand idle stores hold 2 GiB.
const ARENA_BLOCK_BYTES: usize = 64 << 10;
/// Filter bits per key: one false positive in a hundred absent keys.
const BLOOM_BITS: f64 = 10.0;
/// Of a memtable's size, for a filter that says which keys it does not have: new ids of an inbox, new keys of a
/// store, and those that an older memtable or a file has. A search that finds nothing is as dear as one that
/// finds something, a score of cache misses.
const MEMTABLE_FILTER: f64 = 0.01;
/// Disk that a database's manifest sets aside at a time.
const MANIFEST_BYTES: usize = 64 << 10;
/// Files one database keeps open.
const OPEN_FILES_MAX: i32 = 256;
/// RocksDB's own log, of which one file is kept.
const INFO_LOG_BYTES: usize = 1 << 20;

/// Made once per process and lent to every store that is opened. Cheap to clone: clones share.
#[derive(Clone)]
pub struct StoreBudget {
    block_cache: Cache,
    write_buffers: WriteBufferManager,
    options: Options,
    in_memory: bool,
}

impl StoreBudget {
    pub fn new(config: BudgetConfig) -> Result<StoreBudget, StoreError> {
        StoreBudget::on(config, Env::new()?, false)
    }

    /// Databases live in memory and share one name space: for simulation. Nothing survives the
    /// last clone.
    pub fn in_memory(config: BudgetConfig) -> Result<StoreBudget, StoreError> {
        StoreBudget::on(config, Env::mem_env()?, true)
    }

    fn on(config: BudgetConfig, mut env: Env, in_memory: bool) -> Result<StoreBudget, StoreError> {
        env.set_background_threads(i32::from(config.compaction_threads.max(1)));
        env.set_high_priority_background_threads(1);
        let block_cache = Cache::new_lru_cache(config.block_cache_bytes);
        let write_buffers = WriteBufferManager::new_write_buffer_manager(config.write_buffer_bytes, false);
        let mut options = options(&config, &block_cache)?;
        options.set_env(&env);
        options.set_write_buffer_manager(&write_buffers);
        Ok(StoreBudget { block_cache, write_buffers, options, in_memory })
    }

    /// Memory that memtables use now, bytes.
    pub fn write_buffers_used(&self) -> usize {
        self.write_buffers.get_usage()
    }

    /// Memory that cached blocks use now, bytes.
    pub fn block_cache_used(&self) -> usize {
        self.block_cache.get_usage()
    }

    pub(super) fn is_in_memory(&self) -> bool {
        self.in_memory
    }

    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    /// Opens the database in `dir`, which must exist unless `create`.
    pub(super) fn open(&self, dir: &Path, create: bool, expiry: &Expiry) -> Result<DB, rocksdb::Error> {
        let mut options = self.options.clone();
        options.create_if_missing(create);
        let expiry = expiry.clone();
        options.set_compaction_filter("inbox", move |_, key, value| match expiry.is_over(key, value) {
            true => CompactionDecision::Remove,
            false => CompactionDecision::Keep,
        });
        // The default column family is named so that batched reads can be given a handle of it.
        DB::open_cf_with_opts(&options.clone(), dir, [(COLUMN_FAMILY, options)])
    }
}

/// When ids of an inbox are forgotten, as its task knows it.
#[derive(Debug, Clone)]
pub(super) struct Expiry(Arc<AtomicI64>);

impl Default for Expiry {
    /// Nothing has expired.
    fn default() -> Expiry {
        Expiry(Arc::new(AtomicI64::new(i64::MIN)))
    }
}

impl Expiry {
    pub fn set(&self, before_ms: i64) {
        self.0.store(before_ms, Ordering::Relaxed);
    }

    fn is_over(&self, key: &[u8], value: &[u8]) -> bool {
        let is_before = |date_ms| date_ms < self.0.load(Ordering::Relaxed);
        is_inbox_key(key) && inbox_date_ms(value).is_some_and(is_before)
    }
}

fn options(config: &BudgetConfig, block_cache: &Cache) -> Result<Options, StoreError> {
    // Not offered as setters by the crate. A store that is dropped without `close` loses what it had
    // not flushed, as in a crash; that is always safe, and it is quick. And a manifest is a few KiB: the
    // 4 MiB that RocksDB sets aside for each would be 4 GiB of disk for a thousand small stores.
    let unset = format!("avoid_flush_during_shutdown=true;manifest_preallocation_size={MANIFEST_BYTES}");
    let mut options = Options::default().get_options_from_string(unset)?;
    options.set_write_buffer_size(config.memtable_bytes);
    options.set_max_write_buffer_number(3);
    options.set_arena_block_size(ARENA_BLOCK_BYTES);
    options.set_memtable_prefix_bloom_ratio(MEMTABLE_FILTER);
    options.set_memtable_whole_key_filtering(true);
    // One thread writes a store at a time, in sorted batches.
    options.set_allow_concurrent_memtable_write(false);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_max_background_jobs(i32::from(config.compaction_threads.max(1)) + 1);
    options.set_max_subcompactions(1);
    options.set_max_open_files(OPEN_FILES_MAX);
    // RocksDB starts all of them at every open, 16 unless told, however few the files are.
    options.set_max_file_opening_threads(1);
    options.set_keep_log_file_num(1);
    options.set_max_log_file_size(INFO_LOG_BYTES);
    options.set_log_level(LogLevel::Warn);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(block_cache);
    table.set_bloom_filter(BLOOM_BITS, false);
    table.set_format_version(5);
    table.set_optimize_filters_for_memory(true);
    options.set_block_based_table_factory(&table);
    Ok(options)
}

pub(super) const COLUMN_FAMILY: &str = "default";

/// No write-ahead log: the changelog is the log.
pub(super) fn write_options() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.disable_wal(true);
    options
}

pub(super) fn flush_options() -> FlushOptions {
    let mut options = FlushOptions::default();
    options.set_wait(true);
    options
}
