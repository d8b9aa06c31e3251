//! The SDK allocates by the batch, never by the record: reading, keeping state, emitting.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use tidemill_sdk::bindings::tidemill::handler::types::{Column, Order, Prefetched, Records};
use tidemill_sdk::guest::{Guest, NoNode};
use tidemill_sdk::{Context, Failure, Handler, Record, Store};

thread_local! {
    /// Of this thread, because the test harness has others.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: by the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: by the caller's contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: by the caller's contract.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Count {
    counts: Store<u64>,
}

impl Handler for Count {
    fn handle(&self, record: &Record<'_>, ctx: &mut Context) -> Result<(), Failure> {
        let count = self.counts.get(ctx, record.key()?)?.unwrap_or(0) + 1;
        self.counts.put(ctx, record.key()?, &count);
        ctx.to("counts").key(record.key()?).value(count).header("source", b"test").send()
    }
}

tidemill_sdk::export!(Count { inputs: ["words"], outputs: ["counts"], stores: ["counts" { prefetch }] });

/// So many records with a tenth as many keys.
fn batch(records: usize) -> (Records, Prefetched) {
    let keys = records / 10;
    let column = |rows: usize, row: &dyn Fn(usize) -> String| {
        let rows: Vec<String> = (0..rows).map(row).collect();
        Column { lengths: rows.iter().map(|row| row.len() as i32).collect(), bytes: rows.concat().into() }
    };
    let records = Records {
        input: vec![0; records],
        partition: 0,
        offset: (0..records as i64).collect(),
        timestamp: vec![0; records],
        key: column(records, &|n| format!("key-{:06}", n % keys)),
        value: column(records, &|_| "value".into()),
        headers: Column { bytes: Vec::new(), lengths: Vec::new() },
        order: Order::Key,
    };
    let none = Column { bytes: Vec::new(), lengths: vec![-1; keys] };
    let key = column(keys, &|n| format!("key-{n:06}"));
    (records, Prefetched { store: vec![0; keys], key, value: none })
}

fn allocations_of_a_batch(records: usize) -> u64 {
    let mut guest = Guest::<Count>::create(b"{}", Box::new(NoNode)).expect("takes no configuration");
    // The first ones find out how much room a batch needs.
    for _ in 0..2 {
        let (records, prefetched) = batch(records);
        guest.handle(&records, prefetched);
    }
    let (batch, prefetched) = batch(records);
    let before = ALLOCATIONS.get();
    let effects = guest.handle(&batch, prefetched);
    let allocations = ALLOCATIONS.get() - before;
    assert_eq!((effects.emit.source.len(), effects.write.source.len()), (records, records));
    assert!(effects.status.iter().all(|&status| status == 0));
    allocations
}

#[test]
fn ten_times_the_records_cost_a_few_doublings_of_buffers() {
    let (few, many) = (allocations_of_a_batch(50), allocations_of_a_batch(500));
    println!("{few} allocations for 50 records, {many} for 500");
    assert!(many <= few + 30 && many <= 100, "{few} allocations for 50 records, {many} for 500");
}
