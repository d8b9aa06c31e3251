//! Computes from the CSV file alone what the pipeline must find: departure-delay statistics per
//! carrier, and per carrier and day.
//!
//! It shares no code with the pipeline, the handlers or the demo, so that it can be their judge.
//! Prints one line per group, tab separated:
//!
//! ```text
//! carrier  date (empty: whole month)  count  missing  sum  min  max  mean
//! ```
//!
//! `count` are the flights that left, `missing` the cancelled ones, which have no delay; the rest is
//! in minutes over the flights that left, empty if none did.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};

use anyhow::{Context, Result, bail};
use flate2::read::GzDecoder;

#[derive(Default)]
struct Group {
    missing: u64,
    delays: Vec<i64>,
}

fn main() -> Result<()> {
    let Some(path) = std::env::args().nth(1) else {
        bail!("usage: flights-expected FLIGHTS.csv.gz");
    };
    let file = File::open(&path).with_context(|| path.clone())?;
    let mut lines = BufReader::new(GzDecoder::new(file)).lines();
    let header = lines.next().context("the file is empty")??;
    let column = |name: &str| header.split(',').position(|column| column == name).context(name.to_owned());
    let carrier = column("carrier")?;
    let delay = column("dep_delay")?;
    let date = [column("year")?, column("month")?, column("day")?];

    let mut groups: BTreeMap<(String, String), Group> = BTreeMap::new();
    for line in lines {
        let line = line?;
        let fields: Vec<&str> = line.split(',').collect();
        let day = date.map(|index| fields[index]).join("-");
        for date in [String::new(), day] {
            let group = groups.entry((fields[carrier].to_owned(), date)).or_default();
            match fields[delay] {
                "" | "NA" => group.missing += 1,
                minutes => group.delays.push(minutes.parse().with_context(|| line.clone())?),
            }
        }
    }
    for ((carrier, date), Group { missing, delays }) in groups {
        let count = delays.len();
        let sum: i64 = delays.iter().sum();
        let show = |value: Option<&i64>| value.map(i64::to_string).unwrap_or_default();
        let (min, max) = (show(delays.iter().min()), show(delays.iter().max()));
        let mean = if count > 0 { (sum as f64 / count as f64).to_string() } else { String::new() };
        println!("{carrier}\t{date}\t{count}\t{missing}\t{sum}\t{min}\t{max}\t{mean}");
    }
    Ok(())
}
