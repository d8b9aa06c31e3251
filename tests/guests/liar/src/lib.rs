//! Answers a batch of one record with the lie that its value names. Built on the bindings alone,
//! because the SDK cannot be made to lie.
#![cfg(target_arch = "wasm32")]

use tidemill_sdk::bindings::Guest;
use tidemill_sdk::bindings::tidemill::handler::state;
use tidemill_sdk::bindings::tidemill::handler::types::{
    Column, Effects, Emissions, Prefetched, Records, Writes,
};

struct Liar;

impl Guest for Liar {
    fn describe() -> Vec<u8> {
        br#"{"inputs":["in"],"outputs":["out"],"stores":[{"name":"state"}]}"#.to_vec()
    }

    fn init(config: Vec<u8>) -> Result<(), String> {
        if config == br#""put-many""# {
            state::put_many(&Writes { source: vec![], store: vec![], key: no_rows(), value: no_rows() });
        }
        Ok(())
    }

    fn handle(batch: Records, _: Prefetched) -> Effects {
        let mut effects = honest();
        match String::from_utf8_lossy(&batch.value.bytes).as_ref() {
            "nothing" => {}
            "lengths" => effects.emit.key.lengths[0] = i32::MAX,
            "negative" => effects.write.value.lengths[0] = -2,
            "rows" => effects.emit.timestamp.push(0),
            "source" => effects.emit.source[0] = 1,
            "output" => effects.emit.output[0] = 1,
            "store" => effects.write.store[0] = 1,
            "partition" => effects.emit.partition[0] = i32::MIN,
            "status" => effects.status[0] = 77,
            "statuses" => effects.status.push(0),
            "held-back" => effects.status[0] = 3,
            "headers" => effects.emit.headers = column(Some(&[200, 1, 1])),
            "reason" => effects.reason = column(Some(&[b'x'; 2000])),
            "outside" => effects.emit.value.bytes = claim(0xffff_0000 as *mut u8, 0x8000),
            "multiply" => multiply(&mut effects),
            "get" => drop(state::get(9, b"k")),
            "scan" => drop(state::scan(9, b"", None, u32::MAX)),
            "put-many" => state::put_many(&Writes { store: vec![9], ..honest().write }),
            "put-many-source" => state::put_many(&Writes { source: vec![9], ..honest().write }),
            other => panic!("unknown lie {other}"),
        }
        effects
    }
}

/// One emission and one write of the one record.
fn honest() -> Effects {
    Effects {
        emit: Emissions {
            source: vec![0],
            output: vec![0],
            partition: vec![-1],
            timestamp: vec![-1],
            key: column(Some(b"k")),
            value: column(Some(b"v")),
            headers: column(None),
        },
        write: Writes { source: vec![0], store: vec![0], key: column(Some(b"k")), value: column(Some(b"v")) },
        status: vec![0],
        reason: column(None),
    }
}

fn column(row: Option<&[u8]>) -> Column {
    Column { bytes: row.unwrap_or_default().to_vec(), lengths: vec![row.map_or(-1, |row| row.len() as i32)] }
}

fn no_rows() -> Column {
    Column { bytes: vec![], lengths: vec![] }
}

/// Every column claims the same megabytes: they are there once, and copied out many times.
fn multiply(effects: &mut Effects) {
    let bytes = vec![b'x'; 6 << 20].leak();
    for column in [&mut effects.emit.key, &mut effects.emit.value, &mut effects.write.key] {
        column.bytes = claim(bytes.as_mut_ptr(), bytes.len());
        column.lengths[0] = bytes.len() as i32;
    }
}

fn claim(start: *mut u8, len: usize) -> Vec<u8> {
    // SAFETY: there is none; that is the lie. The host refuses the answer while it takes it out of
    // this memory, and never calls the instance again, so nobody reads or frees what is claimed here.
    unsafe { Vec::from_raw_parts(start, len, len) }
}

tidemill_sdk::bindings::export_component!(Liar with_types_in tidemill_sdk::bindings);
